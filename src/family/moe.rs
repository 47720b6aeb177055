//! What the families with mixtures of experts share: the ways in which checkpoints store experts, and the steps from the
//! router to the sum. The router comes first; what every token needs anyway (a shared expert) comes while the chosen
//! experts are being read.

use super::Config;
use super::builder::{Builder, Projection};
use super::dense::Dense;
use crate::checkpoint::{Dtype, Tensor};
use crate::encoding::Encoding;
use crate::error::Result;
use crate::program::{
    Activation, Buffer, Expert, ExpertLayer, Experts, Exponents, Gating, Matrix, Packing, Routing, Step, VectorId,
    Weigh,
};

/// The mixtures of experts of a model, the same in all layers that have one.
pub struct Moe {
    pub hidden: usize,
    /// Width of an expert.
    pub intermediate: usize,
    pub experts: usize,
    pub routing: Routing,
    pub weigh: Weigh,
    pub gating: Gating,
    /// Of the shared expert.
    pub activation: Activation,
    /// Names of gate, up and down where every expert has tensors of its own.
    pub parts: [&'static str; 3],
    pub stored: Stored,
    /// Biases on the router, and on both products of an expert.
    pub biases: bool,
    pub shared: Option<Shared>,
}

/// Which layers of a decoder have one, and under which names.
pub struct Sparse {
    pub moe: Moe,
    pub layers: Vec<bool>,
    /// The block in its layer, e.g. `mlp`.
    pub block: &'static str,
    /// The router in the block.
    pub router: &'static str,
    /// What is added to the router's scores, in the block.
    pub correction: Option<&'static str>,
}

/// How gate and up are stored where all experts are one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `[experts, 2 × intermediate, hidden]`, first all of the gate.
    Rows,
    /// The transpose, `[experts, hidden, 2 × intermediate]`, with the columns in this order.
    Columns(Packing),
}

/// An MLP that every token goes through beside its experts.
pub struct Shared {
    pub name: &'static str,
    pub intermediate: usize,
    /// The name of a row whose product with the token, through a sigmoid, scales the result (Qwen2-MoE).
    pub gate: Option<&'static str>,
}

/// The buffers of a mixture of experts, for all layers.
pub struct MoeBuffers {
    logits: Buffer,
    gathered: Buffer,
    packed: Option<Buffer>,
    gate: Buffer,
    up: Buffer,
    made: Buffer,
    /// Gate, up and result of the shared expert.
    shared: Option<[Buffer; 3]>,
    shared_gate: Option<Buffer>,
}

impl Sparse {
    /// Under the names that most families use.
    pub fn new(moe: Moe, layers: Vec<bool>) -> Sparse {
        Sparse { moe, layers, block: "mlp", router: "gate", correction: None }
    }
}

impl Moe {
    /// Experts with three matrices each, as most families have them.
    pub fn new(dense: &Dense, intermediate: usize, experts: usize, routing: Routing) -> Moe {
        Moe {
            hidden: dense.hidden,
            intermediate,
            experts,
            routing,
            weigh: Weigh::Output,
            gating: Gating::Plain(dense.activation),
            activation: dense.activation,
            parts: ["gate_proj", "up_proj", "down_proj"],
            stored: Stored::Rows,
            biases: false,
            shared: None,
        }
    }

    /// Refuses routing that cannot be: more experts for a token than there are, groups that do not divide them.
    pub fn check(self, config: &Config) -> Result<Moe> {
        let Routing { groups, top_groups, group_best, top_k, .. } = self.routing;
        if self.experts > 1024 {
            return Err(config.unsupported(format!("{} experts in a layer (up to 1024 are)", self.experts)));
        }
        if !self.experts.is_multiple_of(groups)
            || top_groups > groups
            || (top_groups < groups && group_best > self.experts / groups)
        {
            let experts = self.experts;
            return Err(config.problem(format!("{experts} experts in {groups} groups, of which {top_groups} are open")));
        }
        let open = self.experts / groups * top_groups;
        if top_k > open {
            return Err(config.problem(format!("{top_k} experts for a token, of {open} to choose from")));
        }
        Ok(self)
    }
}

impl Builder<'_> {
    /// Buffers for this.
    pub(super) fn moe_buffers(&mut self, moe: &Moe) -> MoeBuffers {
        let packed = matches!(moe.stored, Stored::Columns(_)).then(|| self.buffer(2 * moe.intermediate));
        MoeBuffers {
            logits: self.buffer(moe.experts),
            gathered: self.buffer(moe.hidden),
            packed,
            gate: self.buffer(moe.intermediate),
            up: self.buffer(moe.intermediate),
            made: self.buffer(moe.hidden),
            shared: moe.shared.as_ref().map(|shared| {
                [self.buffer(shared.intermediate), self.buffer(shared.intermediate), self.buffer(moe.hidden)]
            }),
            shared_gate: moe.shared.as_ref().and_then(|shared| shared.gate).map(|_| self.buffer(1)),
        }
    }

    /// `output += experts(input)`, with the tensors of the layer that `prefix` names.
    pub(super) fn moe(
        &mut self,
        sparse: &Sparse,
        on: &MoeBuffers,
        prefix: &str,
        input: Buffer,
        output: Buffer,
    ) -> Result<()> {
        let moe = &sparse.moe;
        let at = &format!("{prefix}{}", sparse.block);
        let name = format!("{at}.{}", sparse.router);
        let router = Projection::new(&name, moe.experts, moe.hidden, input, on.logits);
        self.project(Projection { bias: moe.biases, ..router })?;
        let correction = sparse.correction.map(|name| self.vector(&format!("{at}.{name}"), &[moe.experts]));
        let correction = correction.transpose()?;
        let routing = Routing { correction, ..moe.routing.clone() };
        let layer = self.experts.len();
        let top_k = routing.top_k;
        self.step(Step::Route { layer, logits: on.logits, routing });
        if let Some(shared) = &moe.shared {
            self.shared_expert(moe, shared, on, at, input, output)?;
        }
        let experts = self.experts_of(moe, &format!("{at}.experts"))?;
        // Where each has tensors of its own, gate and up are two of them, however they would be stored together.
        let apart = experts.iter().all(|expert| expert.matrices.len() == 3);
        self.experts.push(ExpertLayer { experts, top_k });
        let packing = match moe.stored {
            Stored::Columns(packing) if !apart => Some(packing),
            _ => None,
        };
        let biases = if moe.biases { self.expert_biases(moe, at)? } else { Vec::new() };
        self.step(Step::Experts(Experts {
            layer,
            input,
            output,
            gathered: on.gathered,
            packed: on.packed.zip(packing),
            gate: on.gate,
            up: on.up,
            made: on.made,
            biases,
            gating: moe.gating,
            weigh: moe.weigh,
        }));
        Ok(())
    }

    fn shared_expert(
        &mut self,
        moe: &Moe,
        shared: &Shared,
        on: &MoeBuffers,
        at: &str,
        input: Buffer,
        output: Buffer,
    ) -> Result<()> {
        let [gate, up, made] = on.shared.expect("made for this");
        let (inner, hidden) = (shared.intermediate, moe.hidden);
        let part = |i: usize| format!("{at}.{}.{}", shared.name, moe.parts[i]);
        self.project(Projection::new(&part(0), inner, hidden, input, gate))?;
        self.project(Projection::new(&part(1), inner, hidden, input, up))?;
        self.step(Step::Glu { activation: moe.activation, gate, up });
        let down = part(2);
        let down = Projection::new(&down, hidden, inner, gate, made);
        let (Some(name), Some(factor)) = (shared.gate, on.shared_gate) else {
            return self.project(Projection { output, add: true, ..down });
        };
        self.project(down)?;
        self.project(Projection::new(&format!("{at}.{name}"), 1, hidden, input, factor))?;
        self.step(Step::GateRows { gate: factor, buffer: made });
        self.step(Step::Add { input: made, output });
        Ok(())
    }

    /// The matrices of all experts of a layer, however they are stored.
    fn experts_of(&mut self, moe: &Moe, at: &str) -> Result<Vec<Expert>> {
        let (hidden, inner) = (moe.hidden, moe.intermediate);
        let whole = format!("{at}.gate_up_proj");
        if self.has(&format!("{whole}_blocks")) {
            return self.mxfp4(moe, at);
        }
        if self.checkpoint.get(&whole).is_none() {
            let shapes = [(inner, hidden), (inner, hidden), (hidden, inner)];
            let mut expert = |e: usize| {
                let parts = moe.parts.iter().zip(shapes);
                let name = |part: &str| format!("{at}.{e}.{part}.weight");
                let matrices = parts.map(|(part, (rows, cols))| self.matrix(&name(part), rows, cols));
                Ok(Expert { matrices: matrices.collect::<Result<_>>()?, exponents: Vec::new() })
            };
            return (0..moe.experts).map(&mut expert).collect();
        }
        let (first, down) = (whole, format!("{at}.down_proj"));
        match moe.stored {
            Stored::Rows => {
                let first = self.stack(&first, [moe.experts, 2 * inner, hidden], false)?;
                let down = self.stack(&down, [moe.experts, hidden, inner], false)?;
                let expert = |e: usize| {
                    let gate = Matrix { first_row: 2 * e * inner, rows: inner, cols: hidden, ..first.clone() };
                    let up = Matrix { first_row: (2 * e + 1) * inner, ..gate.clone() };
                    let down = Matrix { first_row: e * hidden, rows: hidden, cols: inner, ..down.clone() };
                    Expert { matrices: vec![gate, up, down], exponents: Vec::new() }
                };
                Ok((0..moe.experts).map(expert).collect())
            }
            Stored::Columns(_) => {
                let first = self.stack(&first, [moe.experts, hidden, 2 * inner], true)?;
                let down = self.stack(&down, [moe.experts, inner, hidden], true)?;
                let expert = |e: usize| {
                    let both = Matrix { first_row: e * hidden, rows: 2 * inner, cols: hidden, ..first.clone() };
                    let down = Matrix { first_row: e * inner, rows: hidden, cols: inner, ..down.clone() };
                    Expert { matrices: vec![both, down], exponents: Vec::new() }
                };
                Ok((0..moe.experts).map(expert).collect())
            }
        }
    }

    /// Experts in MXFP4: rows of outputs, gate and up in turn.
    fn mxfp4(&self, moe: &Moe, at: &str) -> Result<Vec<Expert>> {
        let (hidden, inner) = (moe.hidden, moe.intermediate);
        let part = |name: &str, rows: usize, cols: usize| -> Result<(Matrix, Exponents)> {
            let blocks = format!("{at}.{name}_blocks");
            if !cols.is_multiple_of(32) {
                return Err(
                    self.unsupported(self.checkpoint.require(&blocks)?, &format!("with rows of {cols} numbers"))
                );
            }
            let tensor = self.bytes(&blocks, &[moe.experts, rows, cols / 32, 16])?;
            let exponents = self.bytes(&format!("{at}.{name}_scales"), &[moe.experts, rows, cols / 32])?;
            let encoding = Encoding::Mxfp4;
            let matrix = Matrix { tensor, first_row: 0, rows, cols, encoding, scales: None, groups: None };
            Ok((matrix, Exponents { tensor: exponents, first_row: 0, row_bytes: cols / 32 }))
        };
        let parts = [part("gate_up_proj", 2 * inner, hidden)?, part("down_proj", hidden, inner)?];
        let expert = |e: usize| {
            let of = |(matrix, exponents): &(Matrix, Exponents)| {
                let first_row = e * matrix.rows;
                (Matrix { first_row, ..matrix.clone() }, Exponents { first_row, ..exponents.clone() })
            };
            let (matrices, exponents) = parts.iter().map(of).unzip();
            Expert { matrices, exponents }
        };
        Ok((0..moe.experts).map(expert).collect())
    }

    /// A tensor of bytes.
    fn bytes(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.shaped(name, shape)?;
        match tensor.dtype {
            Dtype::U8 => Ok(tensor.clone()),
            other => Err(self.unsupported(tensor, &format!("of type {other} where bytes were expected"))),
        }
    }

    /// A tensor with a matrix for every expert, as one matrix that has all their stored rows. With `transposed`, each of
    /// these has the weights of one input for all outputs.
    fn stack(&mut self, name: &str, shape: [usize; 3], transposed: bool) -> Result<Matrix> {
        let (mut tensor, encoding) = self.tensor(name, &shape)?;
        let rows_alone = matches!(encoding, Encoding::Packed(_));
        if tensor.transposed || !encoding.is_complete() || (transposed && rows_alone) {
            return Err(self.unsupported(&tensor, &format!("of type {} for experts", tensor.dtype)));
        }
        tensor.transposed = transposed;
        let [experts, stored, along] = shape;
        let (rows, cols) = if transposed { (along, experts * stored) } else { (experts * stored, along) };
        Ok(Matrix { tensor, first_row: 0, rows, cols, encoding, scales: None, groups: None })
    }

    /// The biases of both products of an expert, for all experts.
    fn expert_biases(&mut self, moe: &Moe, at: &str) -> Result<Vec<Option<VectorId>>> {
        let first = self.vector(&format!("{at}.experts.gate_up_proj_bias"), &[moe.experts, 2 * moe.intermediate])?;
        let down = self.vector(&format!("{at}.experts.down_proj_bias"), &[moe.experts, moe.hidden])?;
        Ok(vec![Some(first), Some(down)])
    }
}
