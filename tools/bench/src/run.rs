//! A benchmark from beginning to end: every mode in its own lab, then turn after turn.
//!
//! One repetition is each traffic and placement once, and within it each mode right after the other,
//! so that what is compared saw the same machine. The order of the modes rotates.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::load::LoadReport;
use crate::machine::{Machine, Setting, raise_open_files};
use crate::modes::{BASE, Mode, Setup};
use crate::progress::Progress;
use crate::results::{Failed, Line, Program, Results, Run, Settings, Skipped, Syscalls, Writer};
use crate::scenario::{Scenario, Sizes};
use crate::site::{Placement, Site, Timing};
use crate::syscalls::Counting;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// The modes; the base mode is added if it is missing.
    pub modes: Vec<&'static dyn Mode>,
    /// The kinds of traffic.
    pub scenarios: Vec<Scenario>,
    /// How often.
    pub repetitions: u32,
    /// How long each time.
    pub timing: Timing,
    /// How much of what has a size.
    pub sizes: Sizes,
    /// Processors that others may use before a run is left out.
    pub others_allowed: f64,
    /// How often what others disturbed is measured again.
    pub retries: u32,
    /// What modes are started with.
    pub setup: Setup,
    /// Where the lines go.
    pub out: PathBuf,
    /// What is measured on.
    pub machine: Machine,
}

/// A mode that runs.
struct Contestant {
    mode: &'static dyn Mode,
    site: Site,
    /// The eBPF programs that came with it.
    programs: Vec<u32>,
}

/// Measures everything; each line is in the file as soon as it is known.
///
/// # Errors
/// The base mode could not be started, or nothing could be measured. Other modes that do not start
/// and single measurements that fail are in the results.
pub fn run(options: &Options) -> Result<Results> {
    let files = raise_open_files(OPEN_FILES)?;
    let sizes = Sizes {
        // A proxy has two files per connection.
        idle: options
            .sizes
            .idle
            .min(usize::try_from(files / 2)?.saturating_sub(SPARE_FILES)),
        ..options.sizes
    };
    let _cubic = Setting::allow_cubic()?;
    let mut writer = Writer::create(&options.out)?;
    writer.write(Line::Machine(options.machine.clone()))?;
    writer.write(Line::Settings(Settings {
        started: now(),
        repetitions: options.repetitions,
        warm_up: options.timing.warm_up.as_secs_f64(),
        window: options.timing.window.as_secs_f64(),
        others_allowed: options.others_allowed,
        rate: options.sizes.rate,
    }))?;
    let contestants = start_all(options, &mut writer)?;
    let turns = turns(options);
    let progress = Progress::new(count(options, &turns, contestants.len()));
    let mut bench = Bench {
        options,
        sizes,
        writer,
        progress,
    };
    for repetition in 0..options.repetitions {
        for (turn, (scenario, placement)) in turns.iter().enumerate() {
            let first = turn + usize::try_from(repetition)?;
            bench.turn(&contestants, first, (*scenario, *placement), repetition)?;
        }
    }
    if options.scenarios.contains(&Scenario::Idle) {
        for contestant in contestants.iter().filter(|one| one.mode.name() != BASE) {
            bench.measure(contestant, Scenario::Idle, Placement::TwoNodes, 0)?;
        }
    }
    for contestant in contestants.iter().filter(|one| !one.programs.is_empty()) {
        bench.programs(contestant)?;
    }
    for contestant in contestants.iter().filter(|one| one.mode.name() != BASE) {
        bench.syscalls(contestant)?;
    }
    if bench.writer.results.runs.is_empty() {
        bail!("nothing could be measured");
    }
    Ok(bench.writer.results)
}

fn start_all(options: &Options, writer: &mut Writer) -> Result<Vec<Contestant>> {
    let base = crate::modes::ALL
        .iter()
        .copied()
        .find(|mode| mode.name() == BASE);
    let others = options
        .modes
        .iter()
        .copied()
        .filter(|mode| mode.name() != BASE);
    let mut contestants = Vec::new();
    for mode in base.into_iter().chain(others) {
        if let Some(reason) = mode.missing(&options.setup) {
            Progress::skipped(mode.name(), &reason);
            let mode = mode.name().to_owned();
            writer.write(Line::Skipped(Skipped { mode, reason }))?;
            continue;
        }
        let before = ebpf::programs();
        let start = Instant::now();
        let site = match mode.start(&options.setup) {
            Ok(site) => site,
            Err(error) if mode.name() == BASE => {
                return Err(error.context("starting without a mesh"));
            }
            Err(error) => {
                let reason = format!("{error:#}");
                Progress::skipped(mode.name(), &reason);
                let mode = mode.name().to_owned();
                writer.write(Line::Skipped(Skipped { mode, reason }))?;
                continue;
            }
        };
        let ours = ebpf::programs();
        let programs = ours
            .keys()
            .filter(|id| !before.contains_key(id))
            .copied()
            .collect();
        Progress::started(mode.name(), start.elapsed());
        contestants.push(Contestant {
            mode,
            site,
            programs,
        });
    }
    Ok(contestants)
}

/// What is measured in each repetition.
fn turns(options: &Options) -> Vec<(Scenario, Placement)> {
    let repeated = options
        .scenarios
        .iter()
        .filter(|scenario| **scenario != Scenario::Idle);
    repeated
        .flat_map(|scenario| Placement::ALL.map(|placement| (*scenario, placement)))
        .collect()
}

fn count(options: &Options, turns: &[(Scenario, Placement)], contestants: usize) -> usize {
    let idle = if options.scenarios.contains(&Scenario::Idle) {
        contestants.saturating_sub(1)
    } else {
        0
    };
    let repetitions = usize::try_from(options.repetitions).unwrap_or(usize::MAX);
    turns.len() * contestants * repetitions + idle
}

struct Bench<'a> {
    options: &'a Options,
    sizes: Sizes,
    writer: Writer,
    progress: Progress,
}

impl Bench<'_> {
    /// Measures all modes one after another, and does so again if others had the machine.
    fn turn(
        &mut self,
        contestants: &[Contestant],
        first: usize,
        (scenario, placement): (Scenario, Placement),
        repetition: u32,
    ) -> Result<()> {
        for attempt in 0..=self.options.retries {
            if attempt > 0 {
                self.progress.more(contestants.len());
            }
            let before = self.writer.results.runs.len();
            for index in 0..contestants.len() {
                let next = contestants.get((first + index) % contestants.len());
                let next = next.context("a contestant")?;
                // What is compared is of one attempt, which is a repetition of its own.
                let repetition = repetition + attempt * self.options.repetitions;
                self.measure(next, scenario, placement, repetition)?;
            }
            let runs = self.writer.results.runs.iter().skip(before);
            if !runs.into_iter().any(|run| run.disturbed) {
                break;
            }
        }
        Ok(())
    }

    fn measure(
        &mut self,
        contestant: &Contestant,
        scenario: Scenario,
        placement: Placement,
        repetition: u32,
    ) -> Result<()> {
        if lab::interrupted() {
            bail!("interrupted; what was measured until then is in the results");
        }
        let mode = contestant.mode.name().to_owned();
        let load = scenario.load(self.sizes);
        let timing = self.timing(scenario);
        let report = match cubic(contestant.site.run(placement, load, timing)) {
            Ok(report) => report,
            Err(error) => {
                let failed = Failed {
                    mode,
                    scenario,
                    placement,
                    repetition,
                    error: format!("{error:#}"),
                };
                self.progress.failed(&failed);
                return self.writer.write(Line::Failed(failed));
            }
        };
        let others = report.usage.others() / report.seconds.max(f64::MIN_POSITIVE);
        let run = Run {
            mode,
            scenario,
            placement,
            repetition,
            others,
            disturbed: others > self.options.others_allowed && scenario != Scenario::Idle,
            mesh_processes: contestant.site.mesh_pids(placement).len(),
            report,
        };
        self.progress.measured(&run);
        self.writer.write(Line::Run(Box::new(run)))
    }

    /// Memory needs time to settle, not time to count in.
    fn timing(&self, scenario: Scenario) -> Timing {
        match scenario {
            Scenario::Idle => Timing {
                warm_up: Duration::from_secs(1),
                window: Duration::from_secs(2),
                pinned: false,
            },
            _ => Timing {
                pinned: scenario == Scenario::Pinned,
                ..self.options.timing
            },
        }
    }

    /// A pass of its own, because counting the time of eBPF programs takes time.
    fn programs(&mut self, contestant: &Contestant) -> Result<()> {
        let _counting = Setting::count_bpf_time()?;
        for scenario in [Scenario::One, Scenario::Connect] {
            for placement in Placement::ALL {
                let before = ebpf::programs();
                // The counters see everything, so everything has to be counted.
                let timing = Timing {
                    warm_up: Duration::ZERO,
                    ..self.options.timing
                };
                let load = scenario.load(self.sizes);
                let report = contestant.site.run(placement, load, timing)?;
                let after = ebpf::programs();
                for program in ebpf::growth(&contestant.programs, &before, &after) {
                    if program.count == 0 {
                        continue;
                    }
                    self.writer.write(Line::Program(Program {
                        mode: contestant.mode.name().to_owned(),
                        name: program.name,
                        scenario,
                        placement,
                        count: program.count,
                        nanoseconds: program.nanoseconds,
                        requests: report.requests,
                    }))?;
                }
            }
        }
        Ok(())
    }

    /// A pass of its own, because counting system calls takes time.
    fn syscalls(&mut self, contestant: &Contestant) -> Result<()> {
        for scenario in [
            Scenario::One,
            Scenario::Many,
            Scenario::Connect,
            Scenario::Bulk,
        ] {
            let scenarios = &self.options.scenarios;
            for placement in Placement::ALL
                .into_iter()
                .filter(|_| scenarios.contains(&scenario))
            {
                let timing = Timing {
                    warm_up: Duration::ZERO,
                    ..self.options.timing
                };
                let counting = Counting::start(&contestant.site.mesh_pids(placement))?;
                let load = scenario.load(self.sizes);
                let report = contestant.site.run(placement, load, timing)?;
                self.writer.write(Line::Syscalls(Syscalls {
                    mode: contestant.mode.name().to_owned(),
                    scenario,
                    placement,
                    count: counting.read()?,
                    requests: report.requests,
                    bytes: report.bytes,
                }))?;
            }
        }
        Ok(())
    }
}

/// Another congestion control would compare something else.
fn cubic(report: Result<LoadReport>) -> Result<LoadReport> {
    let report = report?;
    if report.congestion != "cubic" {
        bail!("the client's sockets use {}, not cubic", report.congestion);
    }
    Ok(report)
}

/// UTC, to the minute.
fn now() -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%d %H:%M"])
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Two per idle connection in a proxy, with room.
const OPEN_FILES: u64 = 65_536;
/// What a proxy has open besides.
const SPARE_FILES: usize = 500;
