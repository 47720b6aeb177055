//! What surrounds the experts' products: the choice of eight out of n experts for m rows, with the lists of rows that each
//! gets, and the sum of what eight experts made of m rows of k.

use super::{Case, Shape, bytes_of, pattern};
use crate::check::{Device, Output};
use crate::launch::gemm::Encoding;
use crate::launch::moe::{MAX_EXPERTS, expert_lists, route, sum_experts};
use crate::params::{Dtype, ExpertListsParams, RouteParams, Scores, SumExpertsParams};

/// Experts of a row, as in Qwen3-MoE and DeepSeek V3.
const TOP_K: usize = 8;

pub fn prepare_route(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, experts) = (shape.m, shape.n);
    if !(1..=MAX_EXPERTS).contains(&experts) {
        return Err(format!("{experts} experts: --n from 1 to {MAX_EXPERTS} are possible"));
    }
    let top_k = TOP_K.min(experts);
    let pairs = rows * top_k;
    let weights = device.repeat(&[0xff; 4], pairs * 4)?;
    let choice = RouteParams {
        logits: device.repeat(&pattern(Encoding::F32), rows * experts * 4)? as *const f32,
        ids: device.repeat(&[0; 4], pairs * 4)? as *mut i32,
        weights: weights as *mut f32,
        logits_stride: experts as i64,
        rows: rows as i32,
        experts: experts as i32,
        top_k: top_k as i32,
        groups: 1,
        top_groups: 1,
        group_best: 1,
        scores: Scores::SCORES_SOFTMAX,
        renormalise: 1,
        scale: 1.0,
        ..RouteParams::default()
    };
    let lists = ExpertListsParams {
        ids: choice.ids,
        weights: choice.weights,
        row_ids: device.repeat(&[0; 4], pairs * 4)? as *mut i32,
        row_weights: device.repeat(&[0; 4], pairs * 4)? as *mut f32,
        places: device.repeat(&[0; 4], pairs * 4)? as *mut i32,
        bounds: device.repeat(&[0; 4], (experts + 1) * 4)? as *mut i32,
        rows: rows as i32,
        top_k: top_k as i32,
        experts: experts as i32,
    };
    Ok(Case {
        name: format!("moe_route rows {rows} experts {experts} top {top_k}"),
        steps: vec![(route(&choice), bytes_of(&choice)), (expert_lists(&lists), bytes_of(&lists))],
        bytes: (rows * experts * 4 + pairs * (8 + 8 + 12) + (experts + 1) * 4) as u64,
        flops: (4 * rows * experts) as u64,
        out: Output { address: weights, len: pairs, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}

pub fn prepare_sum(device: &mut dyn Device, shape: &Shape) -> Result<Case, String> {
    let (rows, dim) = (shape.m, shape.k);
    let pairs = rows * TOP_K;
    let numbers = pattern(Encoding::F32);
    let ints = |numbers: &mut dyn Iterator<Item = usize>| -> Vec<u8> {
        numbers.flat_map(|number| (number as i32).to_le_bytes()).collect()
    };
    let out = device.repeat(&[0xff; 4], rows * dim * 4)?;
    let params = SumExpertsParams {
        y: device.repeat(&numbers, pairs * dim * 4)? as *const f32,
        // Every row goes to the same experts, whose places follow one another.
        ids: device.alloc(&ints(&mut (0..pairs).map(|pair| pair % TOP_K))) as *const i32,
        places: device.alloc(&ints(&mut (0..pairs).map(|pair| pair % TOP_K * rows + pair / TOP_K))) as *const i32,
        weights: device.repeat(&numbers, pairs * 4)? as *const f32,
        out: out as *mut f32,
        y_stride: dim as i64,
        out_stride: dim as i64,
        rows: rows as i32,
        top_k: TOP_K as i32,
        dim: dim as i32,
        first_expert: 0,
        end_expert: TOP_K as i32,
        ..SumExpertsParams::default()
    };
    Ok(Case {
        name: format!("moe_sum rows {rows} dim {dim} top {TOP_K}"),
        steps: vec![(sum_experts(&params), bytes_of(&params))],
        bytes: (pairs * (dim * 4 + 12) + rows * dim * 4) as u64,
        flops: (2 * pairs * dim) as u64,
        out: Output { address: out, len: rows * dim, dtype: Dtype::DTYPE_F32 },
        goal: None,
    })
}
