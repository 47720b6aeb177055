//! `pack` and `verify`, with a progress bar.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::encoding::Packed;
use crate::error::{Error, Result};
use crate::hub::Need;
use crate::pack::{Options, goes_on_with, pack, verify};

use super::args::{self, PackTo};
use super::hub::{local, snapshot};
use super::output::tell;
use super::table::{count, data};

pub fn run(args: &args::Pack) -> Result<()> {
    let to = match (args.to, args.block, args.double_quant) {
        (PackTo::Int8, block, false) => Packed::Int8 { block: block.unwrap_or(128) },
        (PackTo::Nf4, None | Some(64), double) => Packed::Nf4 { double },
        (PackTo::Nf4, Some(_), _) => {
            return Err(Error::Request("blocks of nf4 have 64 numbers: leave out --block".into()));
        }
        // Without scales, there is nothing to choose.
        (PackTo::Lossless, Some(_), _) => return Err(Error::Request("--block is for int8: leave it out".into())),
        (PackTo::Lossless, None, false) => Packed::Lossless { escapes: 0 },
        (PackTo::Int8 | PackTo::Lossless, _, true) => {
            return Err(Error::Request("--double-quant is for nf4 only".into()));
        }
    };
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = args.threads.unwrap_or(2 * cores);
    let options = Options {
        to,
        head: args.head || matches!(to, Packed::Lossless { .. }),
        delete_original: args.delete_original,
        ram: args.ram,
        threads,
        abort_at: args.abort_at,
        steps_to: args.steps_to.clone(),
    };
    let bar = bar();
    let most = AtomicU64::new(0);
    let packed = pack(&source(args)?, &args.out, &options, &|done, all| {
        bar.set_length(all);
        // Threads may overtake each other on the way here.
        bar.set_position(most.fetch_max(done, Ordering::Relaxed).max(done));
    });
    bar.finish_and_clear();
    let report = packed?;
    let percent = report.after as f64 / report.before.max(1) as f64 * 100.0;
    let (before, after, matrices) = (data(report.before), data(report.after), report.packed);
    let mut left = match report.transposed {
        0 => String::new(),
        n => format!("; {n} are stored as their transpose and stay as they are"),
    };
    if report.kept > 0 {
        left += &format!("; {} are not bf16, or would hardly get smaller, and stay as they are", report.kept);
    }
    if report.shared > 0 {
        left += &format!(
            "; of {} the Hub's cache keeps the blob, since other snapshots have it, too",
            count(report.shared as u64, "file")
        );
    }
    let out = args.out.display();
    tell(format!(
        "{out}: {before} became {after} ({percent:.1} %), {matrices} tensors packed as {}{left}\n",
        to.name()
    ));
    Ok(())
}

/// Where the source is. Of a repository from which files were deleted already, what is left is what is needed.
fn source(args: &args::Pack) -> Result<PathBuf> {
    match snapshot(&args.model) {
        Some(dir) if goes_on_with(&dir, &args.out)? => Ok(dir),
        _ => local(&args.model, Need::Model),
    }
}

pub fn check(args: &args::Verify) -> Result<()> {
    let bar = bar();
    let found = verify(&args.dir, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let found = found?;
    let (dir, tensors, files) = (args.dir.display(), found.tensors, found.files);
    tell(format!("{dir}: {} in {tensors} tensors, {files} files: all as they were written\n", data(found.bytes)));
    Ok(())
}

fn bar() -> ProgressBar {
    let style = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("a valid template").progress_chars("##-");
    let bar = ProgressBar::new(0).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
