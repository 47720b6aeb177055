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
#[derive(Clone)]
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
    let compressed = |bits: usize, format: &str, symmetric: bool, strategy: &str, group: Value| {
        json!({"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"], "config_groups": {"group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group},
        }}})
    };
    let packed = |bits, symmetric, group: usize| compressed(bits, "pack-quantized", symmetric, "group", json!(group));
    let bytes = |symmetric, strategy| compressed(8, "int-quantized", symmetric, strategy, Value::Null);
    // Equal bits, other groups and zeros: which are a matrix' own, its tensors say.
    let mut several = packed(4, false, 16);
    several["config_groups"]["group_1"] = packed(4, true, 32)["config_groups"]["group_0"].clone();
    several["config_groups"]["group_2"] = packed(4, true, 16)["config_groups"]["group_0"].clone();
    let bnb = || json!({"quant_method": "bitsandbytes"});
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
        form("nf4, blocks of 64", bnb(), 4, 64, all, nf4),
        form("nf4, blocks of 32", bnb(), 4, 32, all, nf4),
        form("nf4, blocks of 4096", bnb(), 4, 4096, &[Zero, Order], nf4),
        form("nf4, scales quantized", bnb(), 4, 64, all, nf4_double),
        form("nf4, scales quantized, blocks of 128", bnb(), 4, 128, all, nf4_double),
        form("fp4, blocks of 64", bnb(), 4, 64, all, fp4),
        form("nf4, stored as bf16", bnb(), 4, 64, all, nf4_as_bf16),
        form("llm.int8", bnb(), 8, 0, &[Zero, Order], llm_int8),
        form("packed, 4 bits, groups of 32", packed(4, true, 32), 4, 32, all, integers),
        form("packed, 4 bits, groups of 32, zeros", packed(4, false, 32), 4, 32, all, integers),
        form("packed, 8 bits, groups of 16, zeros", packed(8, false, 16), 8, 16, all, integers),
        form("packed, 8 bits, groups of 32", packed(8, true, 32), 8, 32, all, integers),
        form("packed, 4 bits in any order, zeros", packed(4, false, 32), 4, 32, all, integers_ordered),
        form("packed, 8 bits in any order", packed(8, true, 16), 8, 16, all, integers_ordered),
        form("packed, 4 bits, an order that says nothing", packed(4, true, 32), 4, 32, all, integers_unordered),
        form(
            "packed, 4 bits, rows",
            compressed(4, "pack-quantized", true, "channel", Value::Null),
            4,
            0,
            &[Zero, Order],
            integers,
        ),
        form("bytes, rows", bytes(true, "channel"), 8, 0, &[Zero, Order], integers),
        form("bytes, rows, zeros", bytes(false, "channel"), 8, 0, &[Zero, Order], integers),
        form("bytes, one scale", bytes(true, "tensor"), 8, 0, &[Zero, Order], integers),
        form(
            "bytes of 4 bits, rows, zeros",
            compressed(4, "int-quantized", false, "channel", Value::Null),
            4,
            0,
            &[Zero, Order],
            integers,
        ),
        form("packed, 4 bits, groups of 32 and of 16, zeros or none", several, 4, 32, all, integers_mixed),
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

fn in_any_order(form: &Form, cols: usize, random: &mut Random) -> Vec<usize> {
    let mut index = in_order(form, cols);
    for i in (1..cols).rev() {
        index.swap(i, random.below(i + 1));
    }
    index
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
    let index = in_any_order(form, cols, random);
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

/// The numbers of bitsandbytes' four bits, as its files have them.
const NF4: [f64; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];
const FP4: [f64; 8] =
    [0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25];

/// As bitsandbytes' `Linear4bit` saves itself; returns indices of codes and scales of blocks too.
fn four_bits(
    form: &Form,
    kind: &str,
    stem: &str,
    [rows, cols]: [usize; 2],
    fault: Option<Fault>,
    random: &mut Random,
    double: bool,
) -> (Vec<Stored>, Vec<f64>) {
    let (count, block) = (rows * cols, form.group);
    let number = |code: usize| match kind {
        "nf4" => NF4[code],
        _ => {
            if code < 8 {
                FP4[code]
            } else {
                -FP4[code - 8]
            }
        }
    };
    let codes = random.codes(count, 16);
    let blocks = count.div_ceil(block);
    let numbers = |values: &[f64]| values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
    let map: Vec<f64> = (0..16).map(number).collect();
    let packed: Vec<u8> = codes.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    let at = format!("{stem}.weight");
    let mut tensors = vec![
        tensor(stem, "weight", Dtype::U8, &[packed.len(), 1], packed),
        tensor(&at, "quant_map", Dtype::F32, &[16], numbers(&map)),
    ];
    let mut state = json!({"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [rows, cols]});
    let absmax: Vec<f64> = if double {
        let (nested, offset) = (256, 0.3125);
        let book: Vec<f64> = (0..256).map(|i| (i as f64 - 127.0) / 512.0).collect();
        let bytes = random.codes(blocks, 256);
        let outer: Vec<f64> = (0..blocks.div_ceil(nested)).map(|i| 0.5 + i as f64 / 64.0).collect();
        state.as_object_mut().unwrap().extend(
            json!({"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": offset})
                .as_object()
                .unwrap()
                .clone(),
        );
        tensors.push(tensor(&at, "absmax", Dtype::U8, &[blocks], bytes.iter().map(|b| *b as u8).collect()));
        tensors.push(tensor(&at, "nested_absmax", Dtype::F32, &[outer.len()], numbers(&outer)));
        tensors.push(tensor(&at, "nested_quant_map", Dtype::F32, &[256], numbers(&book)));
        bytes.iter().enumerate().map(|(i, byte)| book[*byte] * outer[i / nested] + offset).collect()
    } else {
        let absmax = random.scales(blocks, 2);
        tensors.push(tensor(&at, "absmax", Dtype::F32, &[blocks], numbers(&absmax)));
        absmax
    };
    let json = state.to_string().into_bytes();
    tensors.push(tensor(&at, &format!("quant_state.bitsandbytes__{kind}"), Dtype::U8, &[json.len()], json));
    let value = |i: usize| {
        let code = if fault == Some(Order) { codes[i ^ 1] } else { codes[i] };
        // A code has no zero; to be off by one is the same mistake.
        let code = if fault == Some(Zero) { (code + 1) % 16 } else { code };
        let block = i / block + usize::from(fault == Some(Group));
        number(code) * absmax[block % blocks]
    };
    (tensors, (0..count).map(value).collect())
}

fn nf4(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    four_bits(form, "nf4", stem, [rows, cols], fault, random, false)
}

fn nf4_double(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    four_bits(form, "nf4", stem, [rows, cols], fault, random, true)
}

fn fp4(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    four_bits(form, "fp4", stem, [rows, cols], fault, random, false)
}

/// With `bnb_4bit_quant_storage`, the bytes are called something else.
fn nf4_as_bf16(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let (mut tensors, values) = nf4(form, stem, rows, cols, fault, random);
    tensors[0].dtype = Dtype::BF16;
    tensors[0].shape[0] /= 2;
    (tensors, values)
}

/// As bitsandbytes' `Linear8bitLt` saves itself.
fn llm_int8(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let codes = random.codes(rows * cols, 1 << form.bits);
    let maxima = random.scales(rows, 2);
    let tensors = vec![
        tensor(stem, "weight", Dtype::I8, &[rows, cols], codes.iter().map(|c| (*c as i64 - 128) as u8).collect()),
        tensor(stem, "SCB", Dtype::F32, &[rows], maxima.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect()),
        tensor(stem, "weight_format", Dtype::U8, &[], vec![0]),
    ];
    let factors = |r: usize, _: usize| (128.0, maxima[r] / 127.0);
    (tensors, decode([rows, cols], |r, c| codes[r * cols + c], |_| 0, factors, 1, fault))
}

fn integers(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    compressed_tensors(form, stem, [rows, cols], fault, random, &in_order(form, cols))
}

/// In several ways, of which projections take turns.
fn integers_mixed(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let groups = form.config["config_groups"].as_object().unwrap();
    let chosen = groups.values().nth(stem.len() % groups.len()).unwrap();
    let group = chosen["weights"]["group_size"].as_u64().unwrap() as usize;
    let config = json!({"format": form.config["format"], "config_groups": {"group_0": chosen}});
    let of_its_own = Form { config, group, ..form.clone() };
    integers(&of_its_own, stem, rows, cols, fault, random)
}

/// With `actorder: group`, as compressed-tensors quantises the columns of a group wherever they are.
fn integers_ordered(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let index = in_any_order(form, cols, random);
    let (mut tensors, values) = compressed_tensors(form, stem, [rows, cols], fault, random, &index);
    tensors.push(tensor(stem, "weight_g_idx", Dtype::I32, &[cols], words(index.iter().map(|g| *g as u32))));
    (tensors, values)
}

/// With an index that was never filled.
fn integers_unordered(
    form: &Form,
    stem: &str,
    rows: usize,
    cols: usize,
    fault: Option<Fault>,
    random: &mut Random,
) -> (Vec<Stored>, Vec<f64>) {
    let (mut tensors, values) = integers(form, stem, rows, cols, fault, random);
    tensors.push(tensor(stem, "weight_g_idx", Dtype::I32, &[cols], words(vec![u32::MAX; cols])));
    (tensors, values)
}

/// As compressed-tensors' `pack_to_int32` and its plain integers; `index` has the group of each column.
fn compressed_tensors(
    form: &Form,
    stem: &str,
    [rows, cols]: [usize; 2],
    fault: Option<Fault>,
    random: &mut Random,
    index: &[usize],
) -> (Vec<Stored>, Vec<f64>) {
    let weights = &form.config["config_groups"]["group_0"]["weights"];
    let (symmetric, one) = (weights["symmetric"] == true, weights["strategy"] == "tensor");
    let packed = form.config["format"] == "pack-quantized";
    let (bits, middle) = (form.bits, 1usize << (form.bits - 1));
    let group = form.group_of(cols);
    let groups = cols / group;
    let codes = random.codes(rows * cols, 2 * middle);
    let count = if one { 1 } else { rows * groups };
    let zeros = if symmetric { vec![middle; count] } else { random.codes(count, 2 * middle) };
    let scales = random.scales(count, bits);
    let scale_bytes = scales.iter().flat_map(|x| half::bf16::from_f64(*x).to_le_bytes()).collect();
    let scale_shape = if one { vec![1] } else { vec![rows, groups] };
    let mut tensors = vec![tensor(stem, "weight_scale", Dtype::BF16, &scale_shape, scale_bytes)];
    let signed = |codes: &[usize]| codes.iter().map(|code| (*code as i64 - middle as i64) as u8).collect::<Vec<_>>();
    if packed {
        let per_word = 32 / bits;
        let row = |codes: &[usize]| codes.chunks(per_word).map(|c| pack(c.iter().copied(), bits)).collect::<Vec<_>>();
        let all = codes.chunks(cols).flat_map(row);
        tensors.push(tensor(stem, "weight_packed", Dtype::I32, &[rows, cols / per_word], words(all)));
        let shape = [rows, cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect();
        tensors.push(tensor(stem, "weight_shape", Dtype::I64, &[2], shape));
        if !symmetric {
            let zero = &|r: usize, g: usize| zeros[r * groups + g];
            let all = (0..rows / per_word)
                .flat_map(|w| (0..groups).map(move |g| pack((0..per_word).map(|i| zero(w * per_word + i, g)), bits)));
            tensors.push(tensor(stem, "weight_zero_point", Dtype::I32, &[rows / per_word, groups], words(all)));
        }
    } else {
        tensors.push(tensor(stem, "weight", Dtype::I8, &[rows, cols], signed(&codes)));
        if !symmetric {
            tensors.push(tensor(stem, "weight_zero_point", Dtype::I8, &[rows, groups], signed(&zeros)));
        }
    }
    let factor = |r: usize, g: usize| if one { 0 } else { r * groups + g };
    let factors = |r: usize, g: usize| (zeros[factor(r, g)] as f64, scales[factor(r, g)]);
    (tensors, decode([rows, cols], |r, c| codes[r * cols + c], |c| index[c], factors, groups, fault))
}
