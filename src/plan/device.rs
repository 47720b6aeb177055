//! Where everything but weights lies in the memory of a GPU: a pure function of the program and of how much a pass
//! carries, so that the plan counts exactly what the backend uses.
//!
//! Activations are float32, as everywhere. What only products read is kept as their operands instead, in the 16 bits that
//! go into the multiply; what products and others read has both.

use crate::checkpoint::Dtype;
use crate::encoding::Encoding;
use crate::program::{Attention, Buffer, Experts, FactorRoom, KvShape, Matrix, Program, RopeId, Step, Weigh};

/// What everything starts at a multiple of, in bytes.
pub const ALIGN: usize = 256;

/// Bytes of an entry of the list of sequences that kernels are given (`struct Sequence` of kernels/params.h).
pub const SEQUENCE_BYTES: usize = 24;

/// Bytes of an entry of the list of stretches that kernels of layers with a state are given (`struct Stretch`).
pub const STRETCH_BYTES: usize = 16;

/// Positions whose sums attention over few queries keeps apart (kernels/attention.cuh).
const SPLIT_KEYS: usize = 256;

/// What a pass carries at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub rows: usize,
    pub logit_rows: usize,
    pub context: usize,
    pub sequences: usize,
}

/// The type of the numbers that a product with this matrix multiplies: float32 where it is stored as its transpose, the
/// checkpoint's own where it has 16 bits or is float32, else bfloat16.
pub fn operand(matrix: &Matrix) -> Dtype {
    if matrix.tensor.transposed { Dtype::F32 } else { short(matrix.encoding) }
}

fn short(encoding: Encoding) -> Dtype {
    match encoding {
        Encoding::F32 => Dtype::F32,
        Encoding::F16 => Dtype::F16,
        _ => Dtype::Bf16,
    }
}

/// The type of keys and values in the cache: the checkpoint's own, as for operands.
pub fn kv_dtype(program: &Program) -> Dtype {
    program.matrices.first().map_or(Dtype::Bf16, |matrix| short(matrix.encoding))
}

/// Where a buffer of activations lies. Both forms have rows of `stride` elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub stride: usize,
    /// As float32.
    pub wide: Option<usize>,
    /// As operands of products, `operand_bytes` an element.
    pub operand: Option<usize>,
    pub operand_bytes: usize,
    /// Set where whatever writes it may leave the float32 out, and the type it then has.
    pub direct: Option<Dtype>,
}

/// Small arrays that each pass brings along: offsets from the first of them, which lies at [`Layout::notes`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// For each way of cutting a sequence ([`cuts`]), its pieces.
    pub sequences: Vec<usize>,
    /// For each row, which of the sequences it belongs to.
    pub row_sequence: usize,
    /// The rows that have logits.
    pub selected: usize,
    /// The rows of each sequence, where layers keep states.
    pub stretches: Option<usize>,
    /// Cosines and sines of each rope, `[rows, pairs]`.
    pub angles: Vec<[usize; 2]>,
    /// For each [`Step::ScaleQueries`], in order, the factors of the rows.
    pub factors: Vec<usize>,
    /// Bytes of all of them.
    pub len: usize,
}

/// What the latest router chose, as offsets: for each row its experts and what they count, `[rows, top_k]`; and for each expert
/// its rows and what it counts for them (`struct ExpertListsParams` of kernels/params.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    pub ids: usize,
    pub weights: usize,
    pub row_ids: usize,
    pub row_weights: usize,
    pub places: usize,
    pub bounds: usize,
}

/// Where the factors of a matrix go, as offsets: [`FactorRoom`]'s numbers of four bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Factors {
    pub scales: usize,
    pub zeros: usize,
    pub index: usize,
    pub codebook: usize,
    pub block_scales: usize,
}

/// Where keys that the cache holds unrotated are turned, as offsets; for programs that have none, of nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turned {
    /// Keys of one sequence and layer as float32, `[heads, positions, key_dim]`.
    pub wide: usize,
    /// Keys of a layer when they have turned, laid out as in the cache.
    pub keys: usize,
    /// One piece that has all positions; and for each position the number of this piece.
    pub piece: usize,
    pub owners: usize,
    /// The rotations, and the places of their angles from `angles` on: for each sequence the cosines of all positions, then the
    /// sines, `[sequences, 2, context, pairs]`.
    pub ropes: Vec<(RopeId, usize)>,
    pub angles: usize,
    pub angles_len: usize,
}

/// Offsets in the memory of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// In the order of [`Program::vectors`], as float32.
    pub vectors: Vec<usize>,
    /// By attention layer.
    pub slopes: Vec<Option<usize>>,
    pub turned: Turned,
    /// In the order of [`Program::buffers`].
    pub buffers: Vec<Room>,
    pub notes_at: usize,
    pub notes: Notes,
    /// All that a program without experts takes of it is nothing.
    pub chosen: Chosen,
    /// Embedding rows as they are on disk.
    pub embedding: usize,
    /// Float32 sums of attention over few queries.
    pub workspace: usize,
    /// Float32 lengths of the rows of a matrix that is divided by them.
    pub lengths: usize,
    /// The factors of one matrix at a time.
    pub factors: Factors,
    /// Keys and values, by attention layer. Where they are not resident, layers take turns in two places.
    pub kv: Vec<[usize; 2]>,
    pub kv_resident: bool,
    /// States of layers that keep one: `[sequences, 2]` of each.
    pub states: Vec<usize>,
    /// Bytes up to what is remembered of sequences (states, keys and values, and where keys turn), and of that.
    pub fixed: usize,
    pub kv_len: usize,
}

impl Layout {
    pub fn new(program: &Program, size: Size, kv_resident: bool) -> Layout {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = end;
            end = at + bytes.next_multiple_of(ALIGN);
            at
        };
        let vectors = program.vectors.iter().map(|tensor| take(tensor.shape.iter().product::<usize>() * 4)).collect();
        let mut slopes = vec![None; program.kv.len()];
        for (layer, attention) in attentions(program) {
            slopes[layer] = attention.slopes.as_ref().map(|slopes| take(size_of_val(slopes.as_slice())));
        }
        let selected = program.selected_buffers();
        let buffer = |(i, mut room): (usize, Room)| {
            let rows = if selected.contains(&Buffer(i)) { size.logit_rows } else { size.rows };
            let mut form = |needed: Option<usize>, bytes: usize| needed.map(|_| take(rows * room.stride * bytes));
            room.wide = form(room.wide, 4);
            room.operand = form(room.operand, room.operand_bytes);
            room
        };
        let buffers = rooms(program).into_iter().enumerate().map(buffer).collect();
        let notes = Notes::new(program, size);
        let notes_at = take(notes.len);
        let pairs = chosen_bytes(program, size.rows);
        let [ids, weights, row_ids, row_weights, places] = [(); 5].map(|()| take(pairs));
        let bounds = program.experts.iter().map(|layer| (layer.experts.len() + 1) * 4).max();
        let chosen = Chosen { ids, weights, row_ids, row_weights, places, bounds: take(bounds.unwrap_or(0)) };
        let embedding = take(size.rows * program.embedding.row_bytes());
        let workspace = take(workspace(program, size) * size_of::<f32>());
        let lengths = take(normalised_rows(program) * size_of::<f32>());
        let room = FactorRoom::of(program);
        let factors = [room.scales, room.zeros, room.index, room.codebook, room.block_scales];
        let [scales, zeros, index, codebook, block_scales] = factors.map(|numbers| take(numbers * size_of::<f32>()));
        let factors = Factors { scales, zeros, index, codebook, block_scales };
        let fixed = end;
        let states = program.states.iter().map(|numbers| {
            let at = end;
            end += (2 * size.sequences * numbers * size_of::<f32>()).next_multiple_of(ALIGN);
            at
        });
        let states = states.collect();
        let kv = kv(program, size, kv_resident, &mut end);
        let turned = Turned::new(program, size, &mut end);
        let kv_len = end - fixed;
        Layout {
            vectors,
            slopes,
            turned,
            buffers,
            notes_at,
            notes,
            chosen,
            embedding,
            workspace,
            states,
            lengths,
            factors,
            kv,
            kv_resident,
            fixed,
            kv_len,
        }
    }

    /// Bytes of all of it.
    pub fn len(&self) -> usize {
        self.fixed + self.kv_len
    }

    /// Always false: there are activations.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Turned {
    fn new(program: &Program, size: Size, end: &mut usize) -> Turned {
        let Size { context, sequences, .. } = size;
        let mut take = |bytes: usize| {
            let at = *end;
            *end += bytes.next_multiple_of(ALIGN);
            at
        };
        let mut turned = Turned::default();
        let mut keys = 0;
        for (layer, attention) in attentions(program) {
            let Some(rope) = attention.turn_keys else { continue };
            keys = keys.max(program.kv[layer].heads * program.kv[layer].key_dim * context);
            if turned.ropes.iter().all(|(other, _)| *other != rope) {
                turned.ropes.push((rope, turned.angles_len));
                turned.angles_len += sequences * context * program.ropes[rope.0].rotary_dim() * size_of::<f32>();
            }
        }
        if keys > 0 {
            turned.wide = take(keys * size_of::<f32>());
            turned.keys = take(sequences * keys * kv_dtype(program).size());
            turned.piece = take(SEQUENCE_BYTES);
            turned.owners = take(context * size_of::<i32>());
            turned.angles = take(turned.angles_len);
        }
        turned
    }
}

impl Notes {
    fn new(program: &Program, size: Size) -> Notes {
        let mut len = 0;
        let mut take = |bytes: usize| {
            let at = len;
            len = at + bytes.next_multiple_of(ALIGN);
            at
        };
        let rows = size.rows;
        // Every row may be a piece of its own.
        let sequences = cuts(program).iter().map(|_| take(rows * SEQUENCE_BYTES)).collect();
        let (row_sequence, selected) = (take(rows * 4), take(rows * 4));
        let stretches = (!program.states.is_empty()).then(|| take(size.sequences * STRETCH_BYTES));
        let table = |pairs: usize, take: &mut dyn FnMut(usize) -> usize| [(); 2].map(|()| take(rows * pairs * 4));
        let angles = program.ropes.iter().map(|rope| table(rope.rotary_dim() / 2, &mut take)).collect();
        let scaled = program.steps.iter().filter(|step| matches!(step, Step::ScaleQueries { .. }));
        let factors = scaled.map(|_| take(rows * 4)).collect();
        Notes { sequences, row_sequence, selected, stretches, angles, factors, len }
    }
}

/// Bytes of the numbers of the experts that routers choose for so many rows.
pub fn chosen_bytes(program: &Program, rows: usize) -> usize {
    rows * program.experts.iter().map(|layer| layer.top_k).max().unwrap_or(0) * size_of::<i32>()
}

/// A way in which layers see sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Key heads: how far apart the sequences lie in the cache.
    pub heads: usize,
    /// Positions of a chunk, where attention sees only its own.
    pub chunk: Option<usize>,
}

/// All ways in which layers of this program see sequences.
pub fn cuts(program: &Program) -> Vec<Cut> {
    let whole = program.kv.iter().map(|shape| Cut { heads: shape.heads, chunk: None });
    let chunks = attentions(program).map(|(layer, a)| Cut { heads: program.kv[layer].heads, chunk: a.chunk });
    let mut cuts = Vec::new();
    for cut in whole.chain(chunks) {
        if !cuts.contains(&cut) {
            cuts.push(cut);
        }
    }
    cuts
}

/// Bytes of the keys and of the values of a layer, for all sequences.
pub fn kv_bytes(shape: KvShape, size: Size, dtype: Dtype) -> [usize; 2] {
    [shape.key_dim, shape.value_dim].map(|dim| size.sequences * shape.heads * size.context * dim * dtype.size())
}

fn attentions(program: &Program) -> impl Iterator<Item = (usize, &Attention)> {
    program.steps.iter().filter_map(|step| match step {
        Step::Attend { layer, attention, .. } => Some((*layer, attention)),
        _ => None,
    })
}

fn kv(program: &Program, size: Size, resident: bool, end: &mut usize) -> Vec<[usize; 2]> {
    let dtype = kv_dtype(program);
    let bytes = |shape: &KvShape| kv_bytes(*shape, size, dtype).map(|bytes| bytes.next_multiple_of(ALIGN));
    if resident {
        let mut place = |bytes: usize| {
            *end += bytes;
            *end - bytes
        };
        return program.kv.iter().map(|shape| bytes(shape).map(&mut place)).collect();
    }
    let largest = |part: usize| program.kv.iter().map(|shape| bytes(shape)[part]).max().unwrap_or(0);
    let (begin, keys, values) = (*end, largest(0), largest(1));
    *end += 2 * (keys + values);
    let turn = |layer: usize| begin + layer % 2 * (keys + values);
    (0..program.kv.len()).map(|layer| [turn(layer), turn(layer) + keys]).collect()
}

/// Floats for attention of one row of each sequence at a time.
fn workspace(program: &Program, size: Size) -> usize {
    let splits = size.context.div_ceil(SPLIT_KEYS);
    let layer = |step: &Step| match step {
        Step::Attend { layer, queries, .. } => {
            let KvShape { key_dim, value_dim, .. } = program.kv[*layer];
            size.sequences * (program.buffers[queries.0] / key_dim) * splits * (value_dim + 2)
        }
        _ => 0,
    };
    program.steps.iter().map(layer).max().unwrap_or(0)
}

/// Rows of the largest matrix whose rows are divided by their lengths.
fn normalised_rows(program: &Program) -> usize {
    let rows = program.steps.iter().filter_map(|step| match step {
        Step::MatMul(product) if product.normalise_rows => Some(program.matrices[product.matrix.0].rows),
        _ => None,
    });
    rows.max().unwrap_or(0)
}

/// Where the first products of an expert go: gate and up, or what has both.
fn expert_halves(step: &Experts) -> Vec<Buffer> {
    step.packed.map_or_else(|| vec![step.gate, step.up], |(packed, _)| vec![packed])
}

/// For each buffer which forms it needs (as places that are not chosen yet).
fn rooms(program: &Program) -> Vec<Room> {
    #[derive(Clone, Default)]
    struct Uses {
        /// Something reads or writes it as float32.
        wide: bool,
        /// Something reads float32 that was written by a step that could leave it out.
        wide_reader: bool,
        /// What products read it as.
        operands: Vec<Dtype>,
    }
    let mut uses = vec![Uses::default(); program.buffers.len()];
    for step in &program.steps {
        let mut wide = |buffers: &[Buffer]| buffers.iter().for_each(|b| uses[b.0].wide = true);
        match step {
            Step::Embed { output, .. } => wide(&[*output]),
            Step::Norm { input, output, add: true, .. } => wide(&[*input, *output]),
            Step::Norm { input, add: false, .. } => wide(&[*input]),
            Step::MatMul(product) => wide(&[product.output]),
            Step::Rearrange { input, output, .. } | Step::Select { input, output } => wide(&[*input, *output]),
            Step::HeadNorm { buffer, .. }
            | Step::Rope { buffer, .. }
            | Step::ScaleQueries { buffer, .. }
            | Step::Activate { buffer, .. }
            | Step::SoftCap { buffer, .. } => wide(&[*buffer]),
            Step::Append { keys, values, .. } => wide(&[*keys, *values]),
            Step::AppendShared { packed, shared, .. } => wide(&[*packed, *shared]),
            Step::Add { input, output } => wide(&[*input, *output]),
            Step::GateRows { gate, buffer } => wide(&[*gate, *buffer]),
            Step::Join { parts, output } => {
                wide(parts);
                wide(&[*output]);
            }
            Step::Convolve(convolution) => wide(&[convolution.buffer]),
            Step::DeltaRule(rule) => wide(&[rule.mixed, rule.decay, rule.write, rule.output]),
            Step::Attend { queries, .. } => wide(&[*queries]),
            Step::Glu { gate, up, .. } => wide(&[*gate, *up]),
            Step::Route { logits, .. } => wide(&[*logits]),
            Step::Experts(step) => {
                wide(&[step.input, step.output, step.made]);
                wide(&expert_halves(step));
                if step.weigh == Weigh::Input {
                    wide(&[step.gathered]);
                }
            }
        }
        let mut read = |buffers: &[Buffer]| buffers.iter().for_each(|b| uses[b.0].wide_reader = true);
        match step {
            Step::Norm { input, output, add: true, .. } => read(&[*input, *output]),
            Step::Norm { input, .. } | Step::Rearrange { input, .. } | Step::Select { input, .. } => read(&[*input]),
            Step::HeadNorm { buffer, .. }
            | Step::Rope { buffer, .. }
            | Step::ScaleQueries { buffer, .. }
            | Step::SoftCap { buffer, .. } => read(&[*buffer]),
            Step::Append { keys, values, .. } => read(&[*keys, *values]),
            Step::AppendShared { packed, shared, .. } => read(&[*packed, *shared]),
            Step::Add { input, output } => read(&[*input, *output]),
            Step::GateRows { gate, buffer } => read(&[*gate, *buffer]),
            Step::Join { parts, .. } => read(parts),
            Step::Convolve(convolution) => read(&[convolution.buffer]),
            Step::DeltaRule(rule) => read(&[rule.mixed, rule.decay, rule.write]),
            Step::Attend { queries, .. } => read(&[*queries]),
            // The gate itself is what the step replaces, and may replace by operands.
            Step::Glu { up, .. } => read(&[*up]),
            Step::Route { logits, .. } => read(&[*logits]),
            Step::Experts(step) => {
                read(&[step.input, step.output, step.made]);
                read(&expert_halves(step).split_off(usize::from(step.packed.is_none())));
                if step.weigh == Weigh::Input {
                    read(&[step.gathered]);
                }
            }
            Step::Activate { .. } => {}
            Step::MatMul(product) if product.add => read(&[product.output]),
            Step::Embed { .. } | Step::MatMul(_) => {}
        }
        if let Step::MatMul(product) = step {
            uses[product.input.0].operands.push(operand(&program.matrices[product.matrix.0]));
        }
        if let Step::Experts(step) = step {
            let matrices = program.experts[step.layer].experts.iter().map(|expert| expert.matrices.split_last());
            for (last, others) in matrices.flatten() {
                uses[step.gate.0].operands.push(operand(last));
                uses[step.gathered.0].operands.extend(others.iter().map(operand));
            }
        }
    }
    uses[program.logits.0].wide_reader = true;
    uses[program.logits.0].wide = true;
    let room = |(width, uses): (&usize, Uses)| {
        let one = uses.operands.first().copied().filter(|first| uses.operands.iter().all(|other| other == first));
        let direct = one.filter(|dtype| *dtype != Dtype::F32 && !uses.wide_reader);
        let narrow = uses.operands.iter().any(|dtype| *dtype != Dtype::F32);
        Room {
            // Rows of operands start at multiples of 16 bytes, and buffers of one width have one stride.
            stride: width.next_multiple_of(8),
            wide: (uses.wide || direct.is_none()).then_some(0),
            operand: narrow.then_some(0),
            operand_bytes: uses.operands.iter().map(|dtype| dtype.size()).max().unwrap_or(0),
            direct,
        }
    };
    let mut rooms: Vec<_> = program.buffers.iter().zip(uses).map(room).collect();
    // Callers get the logits as they lie there.
    rooms[program.logits.0].stride = program.buffers[program.logits.0];
    rooms
}

#[cfg(test)]
mod tests {
    use super::super::tests::program;
    use super::*;

    #[test]
    fn states_lie_before_keys_and_values_twice_for_each_sequence() {
        let mut program = program(&[(1000, 512), (300, 700)]);
        let size = Size { rows: 7, logit_rows: 3, context: 100, sequences: 3 };
        for resident in [true, false] {
            program.states = Vec::new();
            let without = Layout::new(&program, size, resident);
            assert_eq!((without.states.len(), without.notes.stretches), (0, None));
            program.states = vec![5, 640];
            let with = Layout::new(&program, size, resident);
            // 2 · 3 · 5 numbers and 2 · 3 · 640, each from a multiple of 256 bytes on.
            assert_eq!(with.states, [with.fixed, with.fixed + 256]);
            assert_eq!(with.kv[0][0], with.fixed + 256 + 15_360);
            assert_eq!(with.kv_len, without.kv_len + 256 + 15_360);
            assert_eq!(with.fixed, without.fixed + ALIGN, "the list of stretches");
        }
    }
}
