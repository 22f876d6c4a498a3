//! What a benchmark leaves behind: JSON lines, one per run, that everything else is computed from.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::load::LoadReport;
use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::site::Placement;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// What was measured on; the first line.
    Machine(Machine),
    /// How.
    Settings(Settings),
    /// One measurement.
    Run(Box<Run>),
    /// A measurement that failed.
    Failed(Failed),
    /// A mode that did not take part.
    Skipped(Skipped),
    /// The cost of one eBPF program in a pass of its own.
    Program(Program),
    /// System calls of a mode.
    Syscalls(Syscalls),
}

/// How it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// When the run began, UTC.
    pub started: String,
    /// How often each measurement was repeated.
    pub repetitions: u32,
    /// Seconds of traffic before counting.
    pub warm_up: f64,
    /// Seconds of counting.
    pub window: f64,
    /// Processors that others may use before a run is left out.
    pub others_allowed: f64,
    /// Requests per second of the scenario with a fixed rate.
    pub rate: u32,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The mode's name.
    pub mode: String,
    /// The traffic.
    pub scenario: Scenario,
    /// Where the server was.
    pub placement: Placement,
    /// Runs of one repetition are compared with each other.
    pub repetition: u32,
    /// Processors that others used meanwhile.
    pub others: f64,
    /// Whether that was too much.
    pub disturbed: bool,
    /// How many processes of the mesh the traffic passed.
    pub mesh_processes: usize,
    /// What the client saw.
    pub report: LoadReport,
}

/// A measurement that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The mode's name.
    pub mode: String,
    /// The traffic.
    pub scenario: Scenario,
    /// Where the server was.
    pub placement: Placement,
    /// Which repetition.
    pub repetition: u32,
    /// Why.
    pub error: String,
}

/// A mode that did not take part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its name.
    pub mode: String,
    /// Why.
    pub reason: String,
}

/// What one eBPF program cost while one kind of traffic ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The mode's name.
    pub mode: String,
    /// The program's name in the kernel.
    pub name: String,
    /// The traffic.
    pub scenario: Scenario,
    /// Where the server was.
    pub placement: Placement,
    /// How often it ran.
    pub count: u64,
    /// How long it ran in all, in nanoseconds.
    pub nanoseconds: u64,
    /// Requests that were answered meanwhile.
    pub requests: u64,
}

/// System calls of the mesh's processes while one kind of traffic ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Syscalls {
    /// The mode's name.
    pub mode: String,
    /// The traffic.
    pub scenario: Scenario,
    /// Where the server was.
    pub placement: Placement,
    /// How many.
    pub count: u64,
    /// Requests that were answered meanwhile.
    pub requests: u64,
    /// Bytes that the client was sent meanwhile.
    pub bytes: u64,
}

/// Everything of one benchmark.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    /// What was measured on.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// All measurements.
    pub runs: Vec<Run>,
    /// Those that failed.
    pub failed: Vec<Failed>,
    /// Modes that did not take part.
    pub skipped: Vec<Skipped>,
    /// Costs of eBPF programs.
    pub programs: Vec<Program>,
    /// System calls.
    pub syscalls: Vec<Syscalls>,
}

impl Results {
    /// Takes one more line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Machine(machine) => self.machine = machine,
            Line::Settings(settings) => self.settings = settings,
            Line::Run(run) => self.runs.push(*run),
            Line::Failed(failed) => self.failed.push(failed),
            Line::Skipped(skipped) => self.skipped.push(skipped),
            Line::Program(program) => self.programs.push(program),
            Line::Syscalls(syscalls) => self.syscalls.push(syscalls),
        }
    }

    /// Reads what a [`Writer`] wrote.
    ///
    /// # Errors
    /// The file cannot be read, or a line is none of ours.
    pub fn read(file: &Path) -> Result<Self> {
        let reader = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        let mut results = Self::default();
        for (number, line) in BufReader::new(reader).lines().enumerate() {
            let line = serde_json::from_str(&line?)
                .with_context(|| format!("{}, line {}", file.display(), number + 1))?;
            results.add(line);
        }
        Ok(results)
    }

    /// The modes that were measured, in the order of their first run.
    #[must_use]
    pub fn modes(&self) -> Vec<&str> {
        let mut modes: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !modes.contains(&&*run.mode) {
                modes.push(&run.mode);
            }
        }
        modes
    }
}

/// Writes each line as soon as it is known, so that an interrupted run leaves what it had.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// What has been written.
    pub results: Results,
}

impl Writer {
    /// Begins a new file, with its directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(file: &Path) -> Result<Self> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = File::create(file).with_context(|| format!("creating {}", file.display()))?;
        Ok(Self {
            file,
            results: Results::default(),
        })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// The disk is full, or the like.
    pub fn write(&mut self, line: Line) -> Result<()> {
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())?;
        self.results.add(line);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::load::Quantiles;

    /// A run with a median latency and a rate.
    pub(crate) fn run(mode: &str, scenario: Scenario, repetition: u32, p50: f64, rate: u64) -> Run {
        Run {
            mode: mode.to_owned(),
            scenario,
            placement: Placement::TwoNodes,
            repetition,
            others: 0.0,
            disturbed: false,
            mesh_processes: usize::from(mode != "direct") * 2,
            report: LoadReport {
                seconds: 1.0,
                requests: rate,
                latency: Some(Quantiles {
                    p50,
                    ..Quantiles::default()
                }),
                ..LoadReport::default()
            },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/results.jsonl");
        let mut writer = Writer::create(&file).unwrap();
        for line in [
            Line::Machine(Machine {
                processors: 2,
                ..Machine::default()
            }),
            Line::Settings(Settings {
                repetitions: 3,
                ..Settings::default()
            }),
            Line::Run(Box::new(run("direct", Scenario::One, 0, 20.5, 100))),
            Line::Run(Box::new(run("ambient", Scenario::One, 0, 30.5, 50))),
            Line::Skipped(Skipped {
                mode: "x".to_owned(),
                reason: "y".to_owned(),
            }),
        ] {
            writer.write(line).unwrap();
        }
        let read = Results::read(&file).unwrap();
        assert_eq!(read, writer.results);
        assert_eq!(read.modes(), ["direct", "ambient"]);
    }
}
