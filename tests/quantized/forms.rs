//! The forms in which quantised matrices are published: how random codes and factors are stored, and what they stand for.

use safetensors::Dtype;
use serde_json::{Value, json};

/// A tensor of a file.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// What can be wrong about a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Zeros are one more.
    Zero,
    /// Neighbouring codes change places.
    Order,
    /// A number belongs to the group after its own.
    Group,
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    /// In [-1, 1).
    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn codes(&mut self, n: usize, limit: usize) -> Vec<usize> {
        (0..n).map(|_| self.below(limit)).collect()
    }

    /// Scales that are exact in every float type, so that products of all forms are of ordinary size.
    fn scales(&mut self, n: usize, bits: usize) -> Vec<f64> {
        (0..n).map(|_| (1 + self.below(15)) as f64 / 64.0 / (1 << (bits - 2)) as f64).collect()
    }
}

/// How a matrix is stored, by the name of the form.
type Store = fn(&Form, &str, usize, usize, Option<Fault>, &mut Random) -> (Vec<Stored>, Vec<f64>);

/// A form with its options.
pub struct Form {
    pub name: &'static str,
    pub config: Value,
    pub faults: &'static [Fault],
    bits: usize,
    /// 0: all columns are one.
    group: usize,
    store: Store,
}

impl Form {
    /// A `[rows, cols]` matrix with random codes: its tensors, and what it stands for (with a fault, something else).
    pub fn matrix(
        &self,
        stem: &str,
        rows: usize,
        cols: usize,
        fault: Option<Fault>,
        random: &mut Random,
    ) -> (Vec<Stored>, Vec<f64>) {
        (self.store)(self, stem, rows, cols, fault, random)
    }

    fn group_of(&self, cols: usize) -> usize {
        if self.group == 0 { cols } else { self.group }
    }
}

use Fault::{Group, Order, Zero};

pub fn forms() -> Vec<Form> {
    let all = &[Zero, Order, Group];
    let gptq = |bits: usize, group: i64, extra: Value| {
        let mut config =
            json!({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": false, "desc_act": false});
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    };
    let awq = |group: i64| json!({"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM", "zero_point": true});
    let form = |name, config, bits, group, faults, store| Form { name, config, faults, bits, group, store };
    vec![
        form("gptq, 4 bits, groups of 32", gptq(4, 32, json!({})), 4, 32, all, gptq_v1),
        form("gptq, 8 bits, groups of 16", gptq(8, 16, json!({})), 8, 16, all, gptq_v1),
        form("gptq, one group", gptq(4, -1, json!({})), 4, 0, &[Zero, Order], gptq_v1),
        form("gptq, groups of 24 that do not divide", gptq(4, 24, json!({})), 4, 24, all, gptq_v1),
        form("gptq v2", gptq(4, 32, json!({"checkpoint_format": "gptq_v2"})), 4, 32, all, gptq_v2),
        form("gptq v2 called gptq", gptq(4, 32, json!({"sym": true})), 4, 32, all, gptq_mislabelled),
        form("gptq in any order", gptq(4, 32, json!({"desc_act": true})), 4, 32, all, gptq_ordered),
        form("gptq, 8 bits in any order", gptq(8, 32, json!({"desc_act": true})), 8, 32, all, gptq_ordered),
        form("awq, groups of 32", awq(32), 4, 32, all, awq_gemm),
        form("awq, one group", awq(-1), 4, 0, &[Zero, Order], awq_gemm),
    ]
}

fn tensor(stem: &str, ending: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Stored {
    Stored { name: format!("{stem}.{ending}"), dtype, shape: shape.to_vec(), bytes }
}

fn words(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn halves(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect()
}

/// Codes in words, in this order from the lowest bits up.
fn pack(codes: impl IntoIterator<Item = usize>, bits: usize) -> u32 {
    codes.into_iter().enumerate().fold(0, |word, (i, code)| word | (code as u32) << (bits * i))
}

/// What codes stand for: `(code − zero) · scale` of the group, `[rows, cols]`, with the fault.
fn decode(
    [rows, cols]: [usize; 2],
    code: impl Fn(usize, usize) -> usize,
    group: impl Fn(usize) -> usize,
    factors: impl Fn(usize, usize) -> (f64, f64),
    groups: usize,
    fault: Option<Fault>,
) -> Vec<f64> {
    let mut values = Vec::with_capacity(rows * cols);
    for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
        let group = if fault == Some(Group) { (group(c) + 1) % groups } else { group(c) };
        let code = if fault == Some(Order) { code(r ^ 1, c ^ 1) } else { code(r, c) };
        let (zero, scale) = factors(r, group);
        let zero = if fault == Some(Zero) { zero + 1.0 } else { zero };
        values.push((code as f64 - zero) * scale);
    }
    values
}

/// As AutoGPTQ's `QuantLinear.pack`: `less` is taken from zeros, and `index` has the group of each column.
fn gptq(
    form: &Form,
    stem: &str,
    [rows, cols]: [usize; 2],
    fault: Option<Fault>,
    random: &mut Random,
    [less, fixed]: [usize; 2],
    index: &[usize],
) -> (Vec<Stored>, Vec<f64>) {
    let (bits, limit) = (form.bits, 1 << form.bits);
    let (groups, per_word) = (cols.div_ceil(form.group_of(cols)), 32 / bits);
    let codes = random.codes(rows * cols, limit);
    let code = |r: usize, c: usize| codes[r * cols + c];
    let zeros: Vec<usize> = match fixed {
        0 => random.codes(groups * rows, limit),
        fixed => vec![fixed; groups * rows],
    };
    let scales = random.scales(groups * rows, bits);
    let weights = (0..cols / per_word)
        .flat_map(|w| (0..rows).map(move |r| (w, r)))
        .map(|(w, r)| pack((0..per_word).map(|i| code(r, w * per_word + i)), bits));
    let stored_zeros = zeros.chunks(per_word).map(|z| pack(z.iter().map(|z| z.wrapping_sub(less) % limit), bits));
    let tensors = vec![
        tensor(stem, "qweight", Dtype::I32, &[cols / per_word, rows], words(weights)),
        tensor(stem, "qzeros", Dtype::I32, &[groups, rows / per_word], words(stored_zeros)),
        tensor(stem, "scales", Dtype::F16, &[groups, rows], halves(&scales)),
        tensor(stem, "g_idx", Dtype::I32, &[cols], words(index.iter().map(|g| *g as u32))),
        // AutoGPTQ writes biases that nothing has.
        tensor(stem, "bias", Dtype::F16, &[rows], vec![0; 2 * rows]),
    ];
    let factors = |r: usize, group: usize| (zeros[group * rows + r] as f64, scales[group * rows + r]);
    (tensors, decode([rows, cols], code, |c| index[c], factors, groups, fault))
}

fn in_order(form: &Form, cols: usize) -> Vec<usize> {
    (0..cols).map(|c| c / form.group_of(cols)).collect()
}

fn gptq_v1(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let index = in_order(form, cols);
    let (mut tensors, values) = gptq(form, stem, [rows, cols], fault, random, [1, 0], &index);
    if rows == cols {
        // Some tools leave out what says nothing.
        tensors.retain(|tensor| !tensor.name.ends_with("g_idx"));
    }
    (tensors, values)
}

fn gptq_v2(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    gptq(form, stem, [rows, cols], fault, random, [0, 0], &in_order(form, cols))
}

fn gptq_mislabelled(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    gptq(form, stem, [rows, cols], fault, random, [0, 8], &in_order(form, cols))
}

fn gptq_ordered(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let mut index = in_order(form, cols);
    for i in (1..cols).rev() {
        index.swap(i, random.below(i + 1));
    }
    gptq(form, stem, [rows, cols], fault, random, [1, 0], &index)
}

/// As AutoAWQ's `WQLinear_GEMM.from_linear`.
fn awq_gemm(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let group = form.group_of(cols);
    let groups = cols.div_ceil(group);
    let codes = random.codes(rows * cols, 16);
    let zeros = random.codes(groups * rows, 16);
    let scales = random.scales(groups * rows, 4);
    let order = |codes: &[usize]| pack([0, 2, 4, 6, 1, 3, 5, 7].map(|i| codes[i]), 4);
    let by_input: Vec<usize> =
        (0..cols).flat_map(|c| (0..rows).map(move |r| (r, c))).map(|(r, c)| codes[r * cols + c]).collect();
    let tensors = vec![
        tensor(stem, "qweight", Dtype::I32, &[cols, rows / 8], words(by_input.chunks(8).map(order))),
        tensor(stem, "qzeros", Dtype::I32, &[groups, rows / 8], words(zeros.chunks(8).map(order))),
        tensor(stem, "scales", Dtype::F16, &[groups, rows], halves(&scales)),
    ];
    let factors = |r: usize, group: usize| (zeros[group * rows + r] as f64, scales[group * rows + r]);
    let code = |r: usize, c: usize| codes[r * cols + c];
    (tensors, decode([rows, cols], code, |c| c / group, factors, groups, fault))
}
