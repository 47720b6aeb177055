//! Which kernel an operation takes, and with what grid, block and dynamic shared memory. The backend, the checks and the
//! benchmarks all ask here, so that what was checked is what runs.

pub mod attention;
pub mod convert;
pub mod factors;
pub mod gated_add;
pub mod gemm;
pub mod gemm_prefill;
pub mod lengths;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod peak;
pub mod recurrent;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod transposed;

/// How to launch one kernel. Mirrors `cuLaunchKernel`; the kernel's one parameter is a struct of [`crate::params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Launch {
    /// A one-dimensional launch without dynamic shared memory.
    pub fn linear(kernel: &'static str, blocks: usize, threads: usize) -> Launch {
        Launch { kernel, grid: [to_u32(blocks), 1, 1], block: [to_u32(threads), 1, 1], shared: 0 }
    }
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).expect("a grid has fewer than 2^32 blocks")
}
