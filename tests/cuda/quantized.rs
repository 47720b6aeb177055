//! Every form of quantised checkpoints that the processor multiplies with, on a GPU: within twice the error that the same
//! numbers have there as bfloat16, and with the same bits wherever tiles of weights and of factors come from.

use std::fs;
use std::path::Path;

use half::bf16;
use layerstream::{Device, Model, Options};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::child::{Job, Outcome};
use crate::expected::nmse;
use crate::forms::{Form, forms};
use crate::model::{EXPERTS, Layout, VOCAB, make, write};
use crate::parent::run;

fn ids() -> Vec<Vec<u32>> {
    // Prompts of one, a few and many tokens take different ways through the kernels.
    [1, 5, 37].map(|len| (0..len).map(|i| i * 29 % VOCAB as u32).collect()).to_vec()
}

fn by_processor(dir: &Path) -> Vec<Vec<f32>> {
    let options = Options { device: Device::Cpu, context: Some(64), all_logits: true, ..Options::default() };
    let mut model = Model::open(dir, &options).unwrap();
    let mut logits = |ids: Vec<u32>| {
        let mut all = Vec::new();
        model
            .logits(&ids, |rows| {
                all.extend_from_slice(rows);
                Ok(())
            })
            .unwrap();
        all
    };
    ids().into_iter().map(&mut logits).collect()
}

/// Rounds the float32 tensors of a checkpoint.
fn narrow(dir: &Path) {
    let file = dir.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let short = |four: &[u8]| bf16::from_f32(f32::from_le_bytes(four.try_into().unwrap())).to_le_bytes();
    let tensors: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec(), view.data().chunks(4).flat_map(short).collect::<Vec<u8>>()))
        .collect();
    let views =
        tensors.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::BF16, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn job(dir: &Path) -> Job {
    Job { model: dir.to_str().unwrap().into(), prompts: ids(), context: 64, sequences: 1, ..Job::default() }
}

/// The largest error of a prompt.
fn error(outcome: &Outcome, expected: &[Vec<f32>]) -> f64 {
    let found = outcome.logits.iter().map(|bits| bits.iter().map(|b| f32::from_bits(*b)).collect::<Vec<_>>());
    found.zip(expected).map(|(found, expected)| nmse(&found, expected)).fold(0.0, f64::max)
}

fn check(layout: Layout, form: &Form, seed: u64) -> Result<(), String> {
    let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make(layout, form, None, quantised.path(), plain.path());
    let expected = by_processor(plain.path());
    narrow(plain.path());
    let jobs = [
        job(plain.path()),
        job(quantised.path()),
        // Weights and factors from disk, in tiles of a few rows and elements.
        Job { vram: Some(20_000), ram: Some(0), ..job(quantised.path()) },
    ];
    let (outcomes, _) = run(&jobs, &[("SEED", &seed.to_string())]).done();
    let name = format!("{}, {layout:?}", form.name);
    if let Some(error) = outcomes.iter().flat_map(|outcome| &outcome.errors).next() {
        return Err(format!("{name}: {error}"));
    }
    let [rounded, all, streamed] = &outcomes[..] else { panic!("three jobs") };
    let (limit, found) = (2.0 * error(rounded, &expected), error(all, &expected));
    println!("{name}: NMSE {found:e}, bfloat16 has {:e}, tiers {:?}", limit / 2.0, streamed.tiers);
    // Written so that NaN fails.
    let good = found <= limit;
    if !good {
        return Err(format!("{name}: NMSE {found:e}, twice that of bfloat16 is {limit:e}"));
    }
    if streamed.tiers[2] == 0 || streamed.logits != all.logits {
        return Err(format!("{name}: bits differ (tiers {:?})", streamed.tiers));
    }
    Ok(())
}

/// Forms of packed projections: those that are stored as their transpose are multiplied whole.
const PACKED: [&str; 4] =
    ["gptq, 4 bits, groups of 32", "gptq in any order", "awq, groups of 32", "packed, 4 bits in any order, zeros"];

/// Forms of experts, with factors of every kind.
const OF_EXPERTS: [&str; 6] = [
    "gptq, 8 bits in any order",
    "awq, groups of 32",
    "nf4, scales quantized",
    "packed, 4 bits, groups of 32, zeros",
    "packed, 4 bits in any order, zeros",
    "bytes, rows, zeros",
];

/// Every token has all experts: rounding cannot choose others.
const ALL_EXPERTS: Layout = Layout::Experts(EXPERTS);

#[test]
fn every_form_is_computed() {
    let forms = forms();
    let some = |layout: Layout, names: &'static [&str]| {
        forms.iter().filter(|form| names.contains(&form.name)).map(move |form| (layout, form))
    };
    let all = forms.iter().map(|form| (Layout::Separate, form));
    let all: Vec<_> = all.chain(some(Layout::Packed, &PACKED)).chain(some(ALL_EXPERTS, &OF_EXPERTS)).collect();
    assert_eq!(all.len(), forms.len() + PACKED.len() + OF_EXPERTS.len());
    let part = |part: usize| {
        let some = all.iter().enumerate().skip(part).step_by(2);
        some.filter_map(|(seed, (layout, form))| check(*layout, form, seed as u64).err()).collect::<Vec<_>>()
    };
    let problems: Vec<String> = std::thread::scope(|scope| {
        let threads = [0, 1].map(|number| scope.spawn(move || part(number)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// An order of groups that leads nowhere is named before anything runs; of experts, before any of theirs does.
#[test]
fn a_column_in_no_group_is_named() {
    let form = forms().into_iter().find(|form| form.name == "gptq in any order").expect("a form of that name");
    for (layout, name) in [
        (Layout::Separate, "model.layers.1.mlp.up_proj.g_idx"),
        (ALL_EXPERTS, "model.layers.1.block_sparse_moe.experts.2.w3.g_idx"),
    ] {
        let (quantised, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut tensors, config) = make(layout, &form, None, quantised.path(), plain.path());
        tensors.iter_mut().find(|tensor| tensor.name == name).expect("an index").bytes[20] = 2;
        write(quantised.path(), &tensors, &config);
        let (outcomes, _) = run(&[job(quantised.path())], &[]).done();
        let error = outcomes[0].errors.first().unwrap_or_else(|| panic!("{layout:?}: no error"));
        assert!(error.contains(name) && error.contains("column 5") && error.contains("group 2 of 2"), "{error}");
    }
}
