//! Page-locked memory: what travels between the host and the GPU beside weights.

use std::sync::Arc;

use layerstream_kernels::driver::{Gpu, Pinned, Stream};

use super::card::failed;
use crate::disk::memory::{Mapping, Region};
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::device::{Layout, chosen_bytes};
use crate::program::Program;

/// A mapping that is page-locked as long as this lives, and mapped at least as long.
pub struct Registered {
    _pinned: Pinned,
    _mapping: Arc<Mapping>,
}

impl Registered {
    pub fn new(gpu: &Gpu, mapping: &Arc<Mapping>) -> Result<Registered> {
        let (address, len) = mapping.range();
        // SAFETY: the mapping is kept, and fields are dropped in order.
        let pinned = unsafe { Pinned::register(gpu, address, len) }.map_err(failed)?;
        Ok(Registered { _pinned: pinned, _mapping: Arc::clone(mapping) })
    }
}

/// Page-locked memory of this backend alone.
pub struct Buffer {
    _registered: Registered,
    region: Region,
}

impl Buffer {
    pub fn new(gpu: &Gpu, len: usize) -> Result<Buffer> {
        let region = Mapping::map(len, true)?;
        Ok(Buffer { _registered: Registered::new(gpu, region.mapping())?, region })
    }

    pub fn address(&mut self) -> *mut u8 {
        self.region.as_mut_ptr()
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.region
    }
}

/// The arrays of a pass, chosen experts, embedding rows, and logits, one after the other.
pub struct Staging {
    buffer: Buffer,
    notes: usize,
    chosen: usize,
    embedding: usize,
}

impl Staging {
    pub fn new(gpu: &Gpu, program: &Program, plan: &Plan, layout: &Layout) -> Result<Staging> {
        let embedding = plan.rows * program.embedding.row_bytes();
        // The embedding's rows may end anywhere; logits are float32.
        let (notes, embedding) = (layout.notes.len, embedding.next_multiple_of(size_of::<f32>()));
        let chosen = chosen_bytes(program, plan.rows);
        let logits = plan.logit_rows * program.buffers[program.logits.0] * size_of::<f32>();
        Ok(Staging { buffer: Buffer::new(gpu, notes + chosen + embedding + logits)?, notes, chosen, embedding })
    }

    /// Where the arrays of a pass are written. Nothing copies from there between passes.
    pub fn notes(&mut self) -> &mut [u8] {
        &mut self.buffer.region[..self.notes]
    }

    pub fn embedding(&mut self) -> &mut [u8] {
        &mut self.buffer.region[self.notes + self.chosen..][..self.embedding]
    }

    /// Numbers of experts that have come.
    pub fn chosen(&self, count: usize) -> &[i32] {
        bytemuck::cast_slice(&self.buffer.region[self.notes..][..count * size_of::<i32>()])
    }

    /// Logits that have come.
    pub fn logits(&mut self, count: usize) -> &mut [f32] {
        let at = self.logits_at();
        bytemuck::cast_slice_mut(&mut self.buffer.region[at..at + count * size_of::<f32>()])
    }

    pub fn upload_notes(&mut self, stream: &Stream, to: u64) -> Result<()> {
        let len = self.notes;
        self.upload(stream, to, 0, len)
    }

    pub fn upload_embedding(&mut self, stream: &Stream, to: u64, len: usize) -> Result<()> {
        let from = self.notes + self.chosen;
        self.upload(stream, to, from, len)
    }

    fn upload(&mut self, stream: &Stream, to: u64, from: usize, len: usize) -> Result<()> {
        assert!(from + len <= self.buffer.region.len());
        // SAFETY: page-locked, inside the buffer, and nobody writes there before the pass has ended, which the last event of
        // the stream says. The plan has room for it on the GPU, which only this stream uses.
        unsafe { stream.upload(to, self.buffer.address().add(from), len) }.map_err(failed)?;
        Ok(())
    }

    pub fn download_logits(&mut self, stream: &Stream, from: u64, count: usize) -> Result<()> {
        let at = self.logits_at();
        self.download(stream, at, from, count * size_of::<f32>())
    }

    pub fn download_chosen(&mut self, stream: &Stream, from: u64, count: usize) -> Result<()> {
        let at = self.notes;
        self.download(stream, at, from, count * size_of::<i32>())
    }

    fn logits_at(&self) -> usize {
        self.notes + self.chosen + self.embedding
    }

    fn download(&mut self, stream: &Stream, to: usize, from: u64, len: usize) -> Result<()> {
        assert!(to + len <= self.buffer.region.len());
        // SAFETY: page-locked, inside the buffer, and nobody looks before an event that the caller records has happened.
        unsafe { stream.download(self.buffer.address().add(to), from, len) }.map_err(failed)?;
        Ok(())
    }
}
