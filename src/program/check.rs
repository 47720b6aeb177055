//! Whether a program holds together: every number in a step names something, and what steps hand to each other has the width
//! that they take. Backends trust a program, so this is asked once, before any memory is taken.

use super::{Attention, Buffer, DeltaRule, Experts, Norm, Product, Program, Rope, RopeId, Routing, Step, VectorId};
use crate::error::{Error, Result};

/// What is wrong with a step.
type Checked<T = ()> = std::result::Result<T, String>;

impl Program {
    /// Checks that all of it fits together. [`Outline`](crate::Outline) does so with every program.
    ///
    /// # Errors
    /// `Request`, with the first step that does not fit, and why.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| Error::Request(format!("the program of the family `{}`: {what}", self.family));
        let mut walk = Walk { program: self, matrices: 0, experts: 0, selected: None };
        for (number, step) in self.steps.iter().enumerate() {
            walk.step(step).map_err(|problem| wrong(format!("step {number}, {step:?}: {problem}")))?;
        }
        walk.end().map_err(wrong)
    }
}

/// The steps so far.
struct Walk<'p> {
    program: &'p Program,
    /// Matrices and layers of experts that steps have used.
    matrices: usize,
    experts: usize,
    /// The buffers with the rows that were kept, once they are.
    selected: Option<Vec<Buffer>>,
}

impl Walk<'_> {
    fn step(&mut self, step: &Step) -> Checked {
        match step {
            Step::Embed { output, .. } => self.is(*output, self.program.embedding.cols)?,
            Step::Norm { norm, input, output, .. } => {
                self.differ(&[*input, *output])?;
                self.is(*output, self.read(*input)?)?;
                self.norm(norm, &[self.width(*input)?])?;
            }
            Step::HeadNorm { norm, buffer, head_dim } => {
                let width = self.read(*buffer)?;
                self.heads(width, *head_dim)?;
                self.norm(norm, &[*head_dim, width])?;
            }
            Step::MatMul(product) => self.product(product)?,
            Step::Rearrange { input, output, first, run, stride } => {
                self.differ(&[*input, *output])?;
                let (from, to) = (self.read(*input)?, self.width(*output)?);
                let runs = self.heads(to, *run)?;
                let end = (runs - 1).checked_mul(*stride).and_then(|last| last.checked_add(first.checked_add(*run)?));
                require(end.is_some_and(|end| end <= from), || format!("its runs go beyond the {from} of its input"))?;
            }
            Step::Join { parts, output } => {
                let mut all = 0;
                for part in parts {
                    self.differ(&[*part, *output])?;
                    all += self.read(*part)?;
                }
                self.is(*output, all)?;
            }
            Step::Rope { buffer, rope, head_dim, start } => {
                self.heads(self.read(*buffer)?, *head_dim)?;
                let turns = self.rope(*rope)?.rotary_dim();
                let fits = start.checked_add(turns).is_some_and(|end| end <= *head_dim);
                require(fits, || format!("{turns} dimensions turn, from {start} on, of heads with {head_dim}"))?;
            }
            Step::Append { layer, keys, values } => {
                let shape = self.kv(*layer)?;
                self.reads(*keys, shape.heads * shape.key_dim)?;
                self.reads(*values, shape.heads * shape.value_dim)?;
            }
            Step::AppendShared { layer, packed, shared } => {
                let (shape, shared) = (self.kv(*layer)?, self.read(*shared)?);
                let own = shape.key_dim.checked_sub(shared);
                let own = own.ok_or_else(|| format!("{shared} shared dimensions of keys with {}", shape.key_dim))?;
                self.reads(*packed, shape.heads * (own + shape.value_dim))?;
            }
            Step::Attend { layer, queries, output, attention } => self.attend(*layer, *queries, *output, attention)?,
            Step::Convolve(convolution) => {
                let (width, taps) = (self.read(convolution.buffer)?, convolution.taps);
                require(taps > 0, || "no taps".into())?;
                self.vector(convolution.weight, &[width * taps])?;
                self.state(convolution.state.0, width * (taps - 1))?;
            }
            Step::DeltaRule(rule) => self.delta_rule(rule)?,
            Step::Route { layer, logits, routing } => self.route(*layer, *logits, routing)?,
            Step::Experts(experts) => self.chosen(experts)?,
            Step::GateRows { gate, buffer } => {
                self.differ(&[*gate, *buffer])?;
                self.reads(*gate, 1)?;
                self.read(*buffer)?;
            }
            Step::Add { input, output: buffer } | Step::Glu { gate: buffer, up: input, .. } => {
                self.differ(&[*input, *buffer])?;
                self.reads(*buffer, self.read(*input)?)?;
            }
            Step::ScaleQueries { buffer, .. } | Step::Activate { buffer, .. } | Step::SoftCap { buffer, .. } => {
                self.read(*buffer)?;
            }
            Step::Select { input, output } => {
                require(self.selected.is_none(), || "rows were selected before".into())?;
                self.differ(&[*input, *output])?;
                self.is(*output, self.read(*input)?)?;
                self.selected = Some(Vec::new());
            }
        }
        if let (Some(selected), Some(output)) = (&mut self.selected, step.output())
            && !selected.contains(&output)
        {
            selected.push(output);
        }
        Ok(())
    }

    fn end(&self) -> Checked {
        let Program { logits, vocab, matrices, experts, .. } = self.program;
        require(self.matrices == matrices.len(), || {
            format!("it has {} matrices, of which its steps use {}", matrices.len(), self.matrices)
        })?;
        require(self.experts == experts.len(), || {
            format!("it has {} layers of experts, of which its steps use {}", experts.len(), self.experts)
        })?;
        let selected = self.selected.as_ref().is_some_and(|selected| selected.contains(logits));
        require(selected, || format!("no step after a `Select` writes its logits, {logits:?}"))?;
        self.is(*logits, *vocab)
    }

    fn product(&mut self, product: &Product) -> Checked {
        self.differ(&[product.input, product.output])?;
        let expected = self.matrices;
        require(product.matrix.0 == expected, || format!("expected matrix {expected}: each is used once, in order"))?;
        let matrix = self.program.matrices.get(expected).ok_or_else(|| format!("there is no matrix {expected}"))?;
        self.matrices += 1;
        self.reads(product.input, matrix.cols)?;
        let (rows, width) = (matrix.rows, self.width(product.output)?);
        let fits = product.first.checked_add(rows).is_some_and(|end| end <= width);
        require(fits, || format!("{rows} rows from column {} on do not fit a width of {width}", product.first))?;
        product.bias.map_or(Ok(()), |bias| self.vector(bias, &[rows]))
    }

    fn attend(&self, layer: usize, queries: Buffer, output: Buffer, attention: &Attention) -> Checked {
        self.differ(&[queries, output])?;
        let shape = self.kv(layer)?;
        let heads = self.heads(self.read(queries)?, shape.key_dim)?;
        self.heads(heads, shape.heads)?;
        self.is(output, heads * shape.value_dim)?;
        let Attention { window, chunk, sinks, slopes, turn_keys, .. } = attention;
        require(*window != Some(0) && *chunk != Some(0), || "a window of no positions".into())?;
        sinks.map_or(Ok(()), |sinks| self.vector(sinks, &[heads]))?;
        let slopes = slopes.as_ref().map_or(heads, Vec::len);
        require(slopes == heads, || format!("{slopes} slopes for {heads} heads"))?;
        let turns = turn_keys.map_or(Ok(0), |rope| self.rope(rope).map(Rope::rotary_dim))?;
        require(turns <= shape.key_dim, || format!("{turns} dimensions turn of keys with {}", shape.key_dim))
    }

    fn delta_rule(&self, rule: &DeltaRule) -> Checked {
        let DeltaRule { key_heads, value_heads, key_dim, value_dim, mixed, decay, write, output, .. } = *rule;
        self.differ(&[mixed, decay, write, output])?;
        self.heads(value_heads, key_heads)?;
        self.reads(mixed, 2 * key_heads * key_dim + value_heads * value_dim)?;
        self.reads(decay, value_heads)?;
        self.reads(write, value_heads)?;
        self.vector(rule.log_decay, &[value_heads])?;
        self.vector(rule.decay_bias, &[value_heads])?;
        self.is(output, value_heads * value_dim)?;
        self.state(rule.state.0, value_heads * key_dim * value_dim)
    }

    fn route(&self, layer: usize, logits: Buffer, routing: &Routing) -> Checked {
        let Routing { groups, top_groups, top_k, .. } = *routing;
        let layer = self.layer(layer)?;
        let count = layer.experts.len();
        self.reads(logits, count)?;
        let open = self.heads(count, groups)? * top_groups;
        let possible = top_groups <= groups && (1..=open).contains(&top_k) && top_k <= layer.top_k;
        require(possible, || format!("it takes {top_k} of {open} experts"))?;
        routing.correction.map_or(Ok(()), |vector| self.vector(vector, &[count]))
    }

    fn chosen(&mut self, step: &Experts) -> Checked {
        let expected = self.experts;
        require(step.layer == expected, || format!("expected layer {expected}: each is used once, in order"))?;
        let layer = self.layer(expected)?;
        let Experts { input, output, gathered, packed, gate, up, made, .. } = *step;
        let packed = packed.map(|(buffer, _)| buffer);
        let buffers: Vec<Buffer> = [input, output, gathered, gate, up, made].into_iter().chain(packed).collect();
        self.differ(&buffers)?;
        let (hidden, inner) = (self.read(input)?, self.width(gate)?);
        for (buffer, width) in [(gathered, hidden), (output, hidden), (made, hidden), (up, inner)] {
            self.is(buffer, width)?;
        }
        let shapes = match packed {
            Some(packed) => {
                self.is(packed, 2 * inner)?;
                vec![(2 * inner, hidden), (hidden, inner)]
            }
            None => vec![(inner, hidden), (inner, hidden), (hidden, inner)],
        };
        for expert in &layer.experts {
            let found: Vec<_> = expert.matrices.iter().map(|matrix| (matrix.rows, matrix.cols)).collect();
            require(found == shapes, || format!("an expert has matrices of {found:?}, not {shapes:?}"))?;
        }
        for (bias, (rows, _)) in step.biases.iter().zip(shapes) {
            bias.map_or(Ok(()), |bias| self.vector(bias, &[layer.experts.len() * rows]))?;
        }
        self.experts += 1;
        Ok(())
    }

    fn norm(&self, norm: &Norm, lengths: &[usize]) -> Checked {
        [norm.weight, norm.bias].into_iter().flatten().try_for_each(|vector| self.vector(vector, lengths))
    }

    fn width(&self, buffer: Buffer) -> Checked<usize> {
        self.program.buffers.get(buffer.0).copied().ok_or_else(|| format!("there is no {buffer:?}"))
    }

    /// The width of a buffer whose rows are those that this step works on.
    fn read(&self, buffer: Buffer) -> Checked<usize> {
        let kept = self.selected.as_ref().is_none_or(|selected| selected.contains(&buffer));
        require(kept, || format!("{buffer:?} was not written since rows were selected"))?;
        self.width(buffer)
    }

    fn reads(&self, buffer: Buffer, expected: usize) -> Checked {
        self.read(buffer)?;
        self.is(buffer, expected)
    }

    fn is(&self, buffer: Buffer, expected: usize) -> Checked {
        let width = self.width(buffer)?;
        require(width == expected, || format!("{buffer:?} is {width} wide; expected {expected}"))
    }

    fn differ(&self, buffers: &[Buffer]) -> Checked {
        let twice = buffers.iter().enumerate().find(|(i, buffer)| buffers[..*i].contains(buffer));
        twice.map_or(Ok(()), |(_, buffer)| Err(format!("{buffer:?} cannot be two things at once")))
    }

    /// How many heads of `dim` make `width`.
    fn heads(&self, width: usize, dim: usize) -> Checked<usize> {
        require(dim > 0 && width >= dim && width.is_multiple_of(dim), || format!("{width} is no multiple of {dim}"))?;
        Ok(width / dim)
    }

    fn rope(&self, rope: RopeId) -> Checked<&Rope> {
        self.program.ropes.get(rope.0).ok_or_else(|| format!("there is no {rope:?}"))
    }

    fn kv(&self, layer: usize) -> Checked<super::KvShape> {
        self.program.kv.get(layer).copied().ok_or_else(|| format!("there is no layer {layer} in the KV cache"))
    }

    fn layer(&self, layer: usize) -> Checked<&super::ExpertLayer> {
        self.program.experts.get(layer).ok_or_else(|| format!("there is no layer {layer} of experts"))
    }

    fn state(&self, state: usize, expected: usize) -> Checked {
        let found = self.program.states.get(state).copied();
        require(found == Some(expected), || format!("state {state} has {found:?} numbers; expected {expected}"))
    }

    fn vector(&self, vector: VectorId, lengths: &[usize]) -> Checked {
        let found = self.program.vectors.get(vector.0).map(|vector| vector.shape.iter().product::<usize>());
        require(found.is_some_and(|found| lengths.contains(&found)), || {
            format!("{vector:?} has {found:?} numbers; expected {lengths:?}")
        })
    }
}

fn require(holds: bool, problem: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(problem()) }
}
