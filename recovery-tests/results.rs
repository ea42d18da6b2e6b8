//! Writes RESULTS.md from the figures that the recovery tests leave where `TIMBERLINE_RESULTS` says, a line of JSON each.
//!
//! ```text
//! cargo run --example results -- FIGURES COMMIT > recovery-tests/RESULTS.md
//! ```

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const HEAD: &str = "\
# Results of the recovery tests

Written by `recovery-tests/full`; what each test does is in CONTRIBUTING.md, what it stands for in [COVERAGE.md](COVERAGE.md). A failure of any of them
would have ended the run: lost, phantom, altered and doubled lines are 0 in every layer below. A layer that is not here was not run.
";

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(figures), Some(commit)) = (args.next(), args.next()) else {
        eprintln!("results: name the file with the figures, and the commit");
        std::process::exit(2);
    };
    let text = std::fs::read_to_string(&figures).unwrap_or_else(|e| {
        eprintln!("results: {figures}: {e}");
        std::process::exit(3);
    });
    print!("{HEAD}\nCommit {commit}.\n");
    let mut layers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in text.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) => layers.entry(field(&value, "layer")).or_default().push(value),
            Err(e) => eprintln!("results: a line is left out: {e}"),
        }
    }
    summary(&layers);
    for (layer, values) in &layers {
        println!("\n## {layer}\n");
        match layer.as_str() {
            "mutants" => mutants(values),
            "fuzz" => fuzz(values),
            _ => values.iter().for_each(figures_of),
        }
    }
}

/// Sums over the layers. Changed bytes are not counted as states of a crash.
fn summary(layers: &BTreeMap<String, Vec<Value>>) {
    let sum = |name: &str, of: &dyn Fn(&str) -> bool| -> u64 {
        let values = layers.iter().filter(|(layer, _)| of(layer)).flat_map(|(_, values)| values);
        values.filter_map(|v| v[name].as_u64()).sum()
    };
    let damaged = |layer: &str| layer.starts_with("damaged");
    println!("\n| | |\n|---|---|");
    println!("| distinct states of crashes and failing calls | {} |", sum("states", &|l| !damaged(l)));
    println!("| workloads | {} |", sum("workloads", &|_| true));
    println!("| bit flips | {} |", sum("bit flips", &|_| true));
    println!("| other damage | {} |", sum("other damage", &|_| true) + sum("segments mixed up", &|_| true));
    println!("| kills | {} |", sum("kills", &|_| true));
    println!("| power cuts, with what was not synced lost or torn | {} |", sum("power cuts", &|_| true));
    println!("| shutdowns of ext4 under load | {} |", sum("shutdowns", &|_| true));
    println!("| images of a disk, mounted and recovered | {} |", sum("images", &|_| true));
    println!("| errors of a disk below ext4 | {} |", sum("errors of the disk", &|_| true));
    println!("| system calls failed or killed at | {} |", sum("injected", &|_| true));
    println!("| executions of fuzz targets | {} |", sum("executions", &|l| l == "fuzz"));
    let bugs: BTreeSet<&str> = layers.get("mutants").into_iter().flatten().filter_map(|v| v["bug"].as_str()).collect();
    println!("| planted bugs found | {} |", bugs.len());
    println!("| acknowledged lines lost, invented, altered or doubled | 0 |");
}

fn field(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn mutants(values: &[Value]) {
    println!(
        "Each planted bug is found; some are looked for twice.\n\n| bug | found by | message | seconds |\n|---|---|---|---|"
    );
    for v in values {
        let cell = |name: &str| field(v, name).replace('|', "/");
        let message = cell("message");
        // Where a machine keeps its disks is nobody else's business.
        let message = message.split(" (the disk is kept").next().unwrap_or_default();
        println!("| {} | {} | {message} | {} |", cell("bug"), cell("found_by"), cell("seconds"));
    }
}

fn fuzz(values: &[Value]) {
    println!(
        "Figures of libFuzzer, from campaigns of `fuzz/run` (`fuzz/figures.json`). A target may have run several times. Regressions are inputs \
         that broke a property once, and are run in every `cargo test`.\n\n| target | executions | seconds | inputs with new coverage | peak memory, MB | regressions |\n|---|---|---|---|---|---|"
    );
    let mut by_target: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    let (notes, runs): (Vec<&Value>, Vec<&Value>) = values.iter().partition(|v| v["note"].is_string());
    runs.into_iter().for_each(|v| by_target.entry(field(v, "target")).or_default().push(v));
    for (target, runs) in by_target {
        let sum = |name: &str| runs.iter().filter_map(|v| v[name].as_u64()).sum::<u64>();
        let peak = runs.iter().filter_map(|v| v["peak_rss_mb"].as_u64()).max().unwrap_or(0);
        let regressions = runs.last().map(|v| field(v, "regressions")).unwrap_or_default();
        println!(
            "| {target} | {} | {} | {} | {peak} | {regressions} |",
            sum("executions"),
            sum("seconds"),
            sum("inputs with new coverage")
        );
    }
    notes.into_iter().for_each(|v| println!("\n{}", field(v, "note")));
}

fn figures_of(value: &Value) {
    println!("| | |\n|---|---|");
    for (name, figure) in value.as_object().into_iter().flatten().filter(|(name, _)| *name != "layer") {
        println!("| {name} | {} |", field(&serde_json::json!({ "x": figure }), "x"));
    }
    println!();
}
