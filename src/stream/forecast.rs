//! When tiles of experts will be needed, as far as that can be known: what decides which of them a memory keeps that cannot
//! hold all.
//!
//! Layers come round in a fixed order, so a tile of an expert that a pass routes to with probability p, `d` layers ahead, is
//! needed after `d + (1/p − 1)·layers` layers on average. The tile that is expected to be needed last should go: Belady's rule
//! with expectations for the future. Least-recently-used would be wrong here: a pass is a cyclic scan, so in a cache that is
//! smaller than what one pass touches it drops every tile just before it is needed again and never has a hit; this rule
//! keeps a share of the tiles as large as the cache, and of experts that are used unevenly the hot ones. The
//! probabilities are running averages, so they follow the text.

use std::collections::HashMap;

/// The weight of the latest request in the running average of how often an expert is used.
const RECENT: f64 = 1.0 / 64.0;

/// How often an expert is taken to be used before anything is known.
const UNKNOWN: f64 = 1.0 / 32.0;

/// See the module's description.
pub(crate) struct Forecast {
    /// Of each tile, whose it is.
    owner: Vec<usize>,
    experts: Vec<Expert>,
    layers: usize,
    /// The layer of the latest request.
    now: usize,
}

struct Expert {
    layer: usize,
    /// Running average over requests for its layer.
    used: f64,
}

impl Forecast {
    /// For tiles of these layers and experts.
    pub(crate) fn new(tiles: impl IntoIterator<Item = (usize, usize)>) -> Forecast {
        let (mut experts, mut ids) = (Vec::new(), HashMap::new());
        let mut owner = |(layer, expert): (usize, usize)| {
            *ids.entry((layer, expert)).or_insert_with(|| {
                experts.push(Expert { layer, used: UNKNOWN });
                experts.len() - 1
            })
        };
        let owner = tiles.into_iter().map(&mut owner).collect();
        let layers = experts.iter().map(|expert| expert.layer + 1).max().unwrap_or(1);
        Forecast { owner, experts, layers, now: 0 }
    }

    /// These tiles of one layer are needed now; those of an expert come one after the other.
    pub(crate) fn request(&mut self, layer: usize, tiles: impl IntoIterator<Item = usize>) {
        self.now = layer;
        for expert in self.experts.iter_mut().filter(|expert| expert.layer == layer) {
            expert.used *= 1.0 - RECENT;
        }
        let mut latest = None;
        for tile in tiles {
            let owner = self.owner[tile];
            if latest.replace(owner) != Some(owner) {
                self.experts[owner].used += RECENT;
            }
        }
    }

    /// In how many layers a tile is expected to be needed.
    pub(crate) fn distance(&self, tile: usize) -> f64 {
        let expert = &self.experts[self.owner[tile]];
        let ahead = (expert.layer + self.layers - self.now - 1) % self.layers + 1;
        ahead as f64 + (1.0 / expert.used - 1.0) * self.layers as f64
    }
}
