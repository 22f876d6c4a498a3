//! An agent that is not in charge yet: it has everything that the one in charge needs.

use std::{sync::Arc, time::Instant};

use anyhow::Context;
use runtime::{admin::Readiness, metrics::Metrics, threads};
use telemetry::ConnectionMetrics;
use tokio::sync::{oneshot, watch};
use xds_client::NodeClient;

use super::{
    Core,
    config::{Framing, Records, RunArgs},
    follow::{follow_configuration, follow_policy, follow_wanted, report_captured},
    in_charge::{Doors, InCharge},
    known,
    planes::Planes,
    setup::{certificates, enrol_config, notices, place, worker_count},
    unservable::Unservable,
    vital,
};
use crate::{
    bpf::Kernel,
    carry::{hold, lobby, thread::WorkerHandle, worker::Shared},
    direct::Direct,
    enrol::{Awaited, Command, EnrolHandle, Enroller, Parts},
    mesh::{Mesh, Writer, native::Native},
    pod::{
        budget::{self, Budget},
        translation::{Translations, Walks},
    },
    succession::{Predecessor, Who},
    telemetry::{
        metrics::{EnrolmentMetrics, count_stalls, register_kernel, stalls},
        record::Recorder,
    },
};

/// Everything that can be there before an agent is in charge.
pub(super) struct Prepared {
    core: Core,
    enroller: Enroller,
    awaited: watch::Receiver<Awaited>,
}

impl Prepared {
    /// Makes everything that can be there before an agent is in charge. Writes nothing that another
    /// agent would notice.
    pub(super) fn assemble(args: &RunArgs, own: Who, descriptors: u64) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let readiness = Readiness::new();
        let planes = Planes::of(args)?;
        let authority = planes.authority();
        let certs = certificates(authority, args.certificate_life, &args.runtime_dir)?;
        let workers = worker_count(args);
        let kernel = Kernel::load(place(args, workers, own.beats))
            .map_err(|error| Unservable(format!("{:#}", anyhow::Error::from(error))))?;
        let kernel = Arc::new(kernel);
        kernel.add_agent(own.cgroup)?;
        register_kernel(&metrics, Arc::clone(&kernel));
        tokio::task::spawn_local(count_stalls(stalls(&metrics)));
        let mesh = Arc::new(Mesh::default());
        let native = Arc::new(Native::new(Arc::clone(&kernel), Arc::clone(&mesh)));
        let limits = budget::Limits {
            total: args.max_connections,
            per_pod: args.max_connections_per_pod,
        };
        let budget = Arc::new(Budget::new(limits, descriptors));
        budget::register(&metrics, Arc::clone(&budget));
        let (enrol, commands) = EnrolHandle::channel();
        let shared = Arc::new(Shared {
            mesh: Arc::clone(&mesh),
            reached: Arc::default(),
            kernel: Arc::clone(&kernel),
            translations: Translations::default(),
            walks: Walks::default(),
            recorder: Arc::new(Recorder::new(ConnectionMetrics::register(&metrics))),
            budget: Arc::clone(&budget),
            lobby: lobby::Bounds::new(descriptors, workers),
            tunnel: tunnel::Settings {
                thin: args.tunnel_framing == Framing::Thin,
                records: match args.tunnel_records {
                    Records::Rustls => tunnel::settings::RecordLayer::Rustls,
                    Records::Own => tunnel::settings::RecordLayer::Own,
                },
                max_age: args.tunnel_max_age,
                ..tunnel::Settings::default()
            },
            busy_poll: args.busy_poll,
            connect_timeout: args.connect_timeout,
            held: Arc::clone(kernel.held()),
            heartbeat: Arc::clone(kernel.heartbeat()),
            not_listening: {
                let enrol = enrol.clone();
                Box::new(move |pod| enrol.send(Command::Relisten(pod)))
            },
        });
        let workers = (0..workers)
            .map(|index| WorkerHandle::start(index, Arc::clone(&shared)))
            .collect::<Result<Vec<_>, _>>()?;
        let direct = Direct::start(
            Arc::clone(&kernel),
            Arc::clone(&mesh),
            Arc::clone(&shared.recorder),
            Arc::clone(&shared.reached),
            Arc::clone(&native),
            budget,
            args.same_node,
        )?;
        let (enroller, ends) = Enroller::new(Parts {
            kernel: Arc::clone(&kernel),
            mesh: Arc::clone(&mesh),
            workers: workers.clone(),
            certs: Arc::new(certs.clone()),
            config: enrol_config(
                args,
                readiness.condition("every captured pod is known"),
                notices(args)?,
            ),
            metrics: EnrolmentMetrics::register(&metrics),
            direct: direct.clone(),
            commands,
        });
        let subscriptions = planes.subscriptions(args);
        let (status, own_status) = (subscriptions.status(), subscriptions.own_status());
        let kept = subscriptions.flusher();
        let elsewhere = subscriptions.istios_status();
        let (stop, stopped) = watch::channel(false);
        let writer = Writer::new(Arc::clone(&mesh)).telling(Arc::clone(&native));
        let subscription = vital("configuration", subscriptions.run(writer, stopped));
        let following = vital(
            "wanted",
            follow_wanted(mesh.wanted(), elsewhere, kept, enrol.clone()),
        );
        vital(
            "policy",
            follow_policy(mesh.changes(), workers.clone(), direct.clone()),
        );
        let (reporting, reports) = watch::channel(true);
        let (namespaces, told) = watch::channel(None);
        let report = report_captured(
            NodeClient::new(planes.controller),
            args.node.clone(),
            args.abi_version,
            ends.captured,
            reports,
            own_status,
            namespaces,
        );
        vital("report", report);
        vital(
            "memory",
            known::keep(args.state_dir.clone(), told, mesh.wanted()),
        );
        let core = Core {
            own,
            metrics,
            readiness,
            certs,
            kernel,
            shared,
            workers,
            direct,
            native,
            enrol,
            status,
            reporting,
            stop,
            subscription,
            following,
        };
        Ok(Self {
            core,
            enroller,
            awaited: ends.awaited,
        })
    }

    /// Puts this agent in charge: at once if nobody is, else as soon as it has what the pods of the
    /// one in charge need.
    pub(super) async fn take_charge(
        self,
        args: &RunArgs,
        predecessor: Predecessor,
    ) -> anyhow::Result<InCharge> {
        let Self {
            core,
            enroller,
            awaited,
        } = self;
        let mut running = match predecessor {
            Predecessor::Nobody(lock) => {
                hold::receive(core.kernel.held(), &core.workers);
                core.kernel.attach()?;
                core.kernel.forget_gone_agents();
                let enrolling = threads::spawn("enrol", move || enroller.in_charge().run())?;
                let doors = Doors::open(args)?;
                return Ok(InCharge {
                    core,
                    enrolling,
                    lock,
                    doors,
                });
            }
            Predecessor::Running(running) => running,
        };
        // The predecessor's own connections in the pods, which our programs will see.
        core.kernel.add_agent(running.who.cgroup)?;
        let enrolling = threads::spawn("enrol", move || enroller.run())?;
        let (configured, known) = watch::channel(false);
        let configured =
            tokio::task::spawn_local(follow_configuration(core.status.clone(), configured));
        running.until_ready(known, awaited).await?;
        configured.abort();
        running.pause().await?;
        let started = Instant::now();
        let (taken, wait) = oneshot::channel();
        core.enrol.send(Command::TakeCharge(taken));
        wait.await
            .context("the enrolment thread has ended")?
            .map_err(anyhow::Error::msg)?;
        let doors = Doors::open(args)?;
        let (lock, farewell) = running.drain().await?;
        tracing::info!(took = ?started.elapsed(), "this agent is in charge; its predecessor drains");
        tokio::task::spawn_local(farewell.wait());
        Ok(InCharge {
            core,
            enrolling,
            lock,
            doors,
        })
    }
}
