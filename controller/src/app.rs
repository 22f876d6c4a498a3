//! Puts the parts together: checks everything that can be wrong before a port opens, then serves until told to stop.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use model::TrustDomain;
use parking_lot::Mutex;
use runtime::admin::{self, Exposure, Readiness};
use runtime::drain::Drain;
use runtime::file::{PRIVATE, PUBLIC, atomic_write_mode};
use runtime::log::LogHandle;
use runtime::metrics::Metrics as Registry;
use runtime::signals::StopSignals;
use tls::ca::{Authority, AuthorityPem, system_clock};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::captures::Captures;
use crate::companions;
use crate::gateways::Keeper;
use crate::marks;
use crate::metrics::Metrics;
use crate::options::{NetworkPolicies, Options};
use crate::pages;
use crate::pipeline::{self, Pipeline, Secrets, Shared};
use crate::root;
use crate::serve::admission;
use crate::serve::auth::{Authenticator, NodeTokens, TokenReviews};
use crate::serve::sync::SyncStatus;
use crate::serve::tls::ServingCertificates;
use crate::serve::{self, Services};
use crate::settings::{Findings, SettingsFile};
use crate::signer::Signer;
use crate::source::Source;
use crate::source::folder::{Folder, Memory, load_last_good};
use crate::source::kubernetes::Cluster;
use crate::source::kubernetes::named::Named;
use crate::status::{self, Replica, Views};
use crate::taint;
use crate::webhook;
use compile::index::{AmbientLabel, Index, MeshConfig};

/// Everything that the options name, read and checked; no port is open yet.
pub struct Prepared {
    options: Options,
    mesh: MeshConfig,
    settings: Option<SettingsFile>,
    trust_domain: TrustDomain,
    signer: Signer,
    certificates: Arc<ServingCertificates>,
    tokens: Option<Arc<NodeTokens>>,
    from: From,
}

/// Where configuration comes from.
enum From {
    Folder(Folder),
    Cluster(Box<kube::Config>),
}

impl Prepared {
    /// Reads what the options name.
    ///
    /// # Errors
    /// The flag that is wrong, and how to put it right.
    pub fn new(options: Options) -> Result<Self> {
        let trust_domain = options
            .trust_domain
            .parse()
            .with_context(|| format!("--trust-domain {}", options.trust_domain))?;
        for alias in &options.trust_domain_aliases {
            let parsed: Result<TrustDomain, _> = alias.parse();
            parsed.with_context(|| format!("--trust-domain-aliases {alias}"))?;
        }
        let tokens = options.node_tokens.as_deref().map(NodeTokens::read);
        let tokens = tokens.transpose()?.map(Arc::new);
        private_dir(&options.state_dir)?;
        let config = match &options.manifests {
            Some(_) => None,
            None => Some(cluster(options.kubeconfig.as_deref())?),
        };
        let authority = match (&config, &options.ca_namespace) {
            (Some(config), Some(namespace)) => cluster_root(config, namespace, &options)?,
            _ => authority(&options)?,
        };
        let signer = Signer::new(authority);
        let certificates = ServingCertificates::new(signer.clone(), options.server_name.clone())
            .with_context(|| format!("--server-name {}", options.server_name.join(",")))?;
        if let Some(out) = &options.root_cert_out {
            let root = signer.now().roots().to_pem();
            atomic_write_mode(out, root.as_bytes(), PUBLIC).with_context(|| {
                format!(
                    "--root-cert-out {}: the folder must exist and be writable",
                    out.display()
                )
            })?;
        }
        let from = match (config, &options.manifests) {
            (None, Some(manifests)) => {
                let last_good = options.state_dir.join("last-good.jsonl");
                let memory = Memory::new(&options.root_namespace)
                    .with_last_good(load_last_good(&last_good)?);
                From::Folder(Folder::open(manifests, memory, &last_good)?)
            }
            (Some(config), _) => From::Cluster(Box::new(config)),
            (None, None) => bail!("--manifests or --kubernetes says what the mesh consists of"),
        };
        let mesh = MeshConfig {
            cluster_id: options.cluster_id.clone(),
            cluster_domain: options.cluster_domain.clone(),
            trust_domain: options.trust_domain.clone(),
            trust_domain_aliases: options.trust_domain_aliases.clone(),
            root_namespace: options.root_namespace.clone(),
            same_node: options
                .same_node
                .map_or(proto::agent::SameNode::Unsaid, Into::into),
            canary: None,
            network_policies: (options.network_policies == NetworkPolicies::Enforce
                || options.companion_policies)
                && !options.captures_only,
            ambient_label: if options.captures_only {
                AmbientLabel::UnderIstiod
            } else {
                options.ambient_label.into()
            },
        };
        let settings = options.settings.as_deref();
        let settings = settings
            .map(|path| SettingsFile::open(path, &options.state_dir, mesh.clone()))
            .transpose()?;
        Ok(Self {
            options,
            mesh,
            settings,
            trust_domain,
            signer,
            certificates,
            tokens,
            from,
        })
    }

    /// Binds both ports and serves until `stop` resolves.
    ///
    /// # Errors
    /// A port that cannot be bound, or a source that ends.
    pub async fn run(self, log: Option<LogHandle>, stop: impl Future<Output = ()>) -> Result<()> {
        let listen = self.options.listen;
        let listener = serve::bind(listen)
            .await
            .with_context(|| format!("--listen {listen}: cannot bind"))?;
        // Probes of a cluster come from outside of the pod; what is not for everybody stays for this host's root and user.
        let exposure = match self.from {
            From::Folder(_) => Exposure::Loopback,
            From::Cluster(_) => Exposure::AnyAddress,
        };
        let admin = admin::Server::bind(self.options.admin, exposure)
            .await
            .context("--admin")?;
        self.run_on(listener, admin, log, stop).await
    }

    /// Serves on ports that are bound already until `stop` resolves.
    ///
    /// # Errors
    /// A source that ends.
    pub async fn run_on(
        self,
        listener: TcpListener,
        admin: admin::Server,
        log: Option<LogHandle>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let drain = Drain::new();
        let tasks = drain.signal();
        let registry = Registry::new();
        let metrics = registry.register(Metrics::register);
        let readiness = Readiness::new();
        let synced = readiness.condition("all objects have been read");
        let complete = readiness.condition("every manifest could be read once");

        let (send_batch, mut batches) = pipeline::batches();
        let (send_report, reports) = pipeline::reports();
        let mut further = Vec::new();
        let mut shared = None;
        let mut written_by = None;
        let mut client = None;
        let mut secrets = None;
        let (source, reviews) = match self.from {
            From::Folder(folder) => (tokio::spawn(folder.run(send_batch)), None),
            From::Cluster(config) => {
                let client =
                    &*client.insert(kube::Client::try_from(*config).context("--kubernetes")?);
                if let Some(namespace) = &self.options.ca_namespace {
                    let place = place(client.clone(), namespace, &self.options);
                    further.push(tokio::spawn(place.follow(self.signer.clone())));
                }
                let reviews = TokenReviews::new(
                    client.clone(),
                    &self.options.token_audiences,
                    &self.options.agent_accounts,
                    self.trust_domain.clone(),
                );
                if let Some(namespace) = &self.options.namespace {
                    let (captures, news) = Captures::new(client.clone(), namespace);
                    further.push(tokio::spawn(captures.clone().follow()));
                    further.push(tokio::spawn(captures.clone().forget_nodes()));
                    shared = Some(Shared { captures, news });
                    let replica = Replica {
                        namespace: namespace.clone(),
                        name: self.options.replica.clone(),
                        pod_uid: self.options.replica_uid.clone(),
                    };
                    written_by = Some((client.clone(), replica));
                    if self.options.startup_taint {
                        let taken_off = taint::take_off(client.clone(), namespace.clone());
                        further.push(tokio::spawn(taken_off));
                    }
                    if self.options.companion_policies && !self.options.captures_only {
                        let ambient = self.options.ambient_label.into();
                        further.push(tokio::spawn(companions::keep(client.clone(), ambient)));
                    }
                }
                let mut cluster = Cluster::new(client.clone(), &self.options.root_namespace)
                    .with_captures_only(self.options.captures_only)
                    .with_network_policies(!self.options.captures_only);
                if !self.options.captures_only {
                    let (wanted, answered) = (watch::Sender::default(), watch::Sender::default());
                    cluster = cluster.with_secrets(Named {
                        wanted: wanted.subscribe(),
                        answered: answered.clone(),
                    });
                    secrets = Some(Secrets {
                        wanted,
                        answered: answered.subscribe(),
                    });
                }
                (tokio::spawn(cluster.run(send_batch)), Some(reviews))
            }
        };
        let authenticator: Arc<dyn Authenticator> = match (self.tokens, reviews) {
            (Some(tokens), _) => tokens,
            (None, Some(reviews)) => Arc::new(reviews),
            (None, None) => bail!("--manifests needs --node-tokens"),
        };
        let mesh = match &self.settings {
            Some(settings) => settings.mesh(),
            // It never changes.
            None => watch::Sender::new(self.mesh).subscribe(),
        };
        let index = Index::new(mesh.borrow().clone());
        let captured = self.options.state_dir.join("captured.json");
        let (pipeline, published) = Pipeline::new(index, metrics.clone(), captured, complete);
        let mut pipeline = pipeline
            .with_shared(shared)
            .with_secrets(secrets)
            .with_settings(mesh.clone());
        let diagnostics = pipeline.diagnostics();
        if let Some(settings) = self.settings {
            let findings = Findings {
                diagnostics: Arc::clone(&diagnostics),
                refused: metrics.settings_refused.clone(),
            };
            further.push(tokio::spawn(settings.follow(findings)));
        }
        let policies = pipeline.policies();
        let sync = SyncStatus::default();
        let taken = sync.taken();
        let sync = Arc::new(Mutex::new(sync));

        if let Some((client, replica)) = written_by.take_if(|_| self.options.captures_only) {
            let leads = watch::Sender::new(false);
            let lease = status::Lease::new(client.clone(), &replica.namespace, &replica.name);
            further.push(tokio::spawn(marks::keep(
                client,
                published.clone(),
                leads.subscribe(),
            )));
            further.push(tokio::spawn(lease.run(leads)));
        }
        if let Some((client, replica)) = written_by {
            let views = Views {
                policies,
                diagnostics: Arc::clone(&diagnostics),
                sync: Arc::clone(&sync),
                viewer: pipeline.viewer(),
            };
            let leads = watch::Sender::new(false);
            let keeper = Keeper {
                client: client.clone(),
                settings: self.options.gateways.clone(),
                viewer: pipeline.viewer(),
                leading: leads.subscribe(),
                cluster_domain: self.options.cluster_domain.clone(),
            };
            let signer = self.signer.clone();
            let roots = move || signer.now().roots().to_pem();
            further.push(tokio::spawn(keeper.run(roots)));
            further.push(tokio::spawn(status::run(client, replica, views, leads)));
        }

        let mut admin = pages::add(admin, published.clone(), diagnostics, Arc::clone(&sync))
            .with_readiness(readiness)
            .with_metrics(registry);
        if let Some(log) = log {
            admin = admin.with_log(log);
        }
        info!(listen = ?listener.local_addr().ok(), admin = %admin.local_addr(), "starting");
        let admin = tokio::spawn(admin.run(tasks));

        let viewer = pipeline.viewer();
        // Nothing is served before everything has been read once.
        let Some(first) = batches.recv().await else {
            bail!("what the mesh consists of could not be read")
        };
        pipeline.start(first).await;
        pipeline.complete(&mut batches).await;
        let pipeline = tokio::spawn(pipeline.run(batches, reports, taken));
        further.push(tokio::spawn(runtime::memory::keep_small()));
        let renewal = tokio::spawn(Arc::clone(&self.certificates).renew());
        if let Some(address) = self.options.admission {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("--admission {address}: cannot bind"))?;
            let certificates = Arc::clone(&self.certificates);
            let known = admission::Known {
                mesh,
                viewer: Some(viewer),
            };
            let served = admission::serve(listener, certificates, known, metrics.clone());
            further.push(tokio::spawn(served));
            if let (Some(name), Some(client)) = (self.options.admission_configuration, client) {
                let signer = self.signer.clone();
                let roots = move || signer.now().roots().to_pem();
                let namespace = self.options.namespace.clone();
                let kept = webhook::keep(client, name, namespace, roots);
                further.push(tokio::spawn(kept));
            }
        }
        let stopping = CancellationToken::new();
        let services = Services {
            authenticator,
            published,
            reports: send_report,
            signer: self.signer,
            trust_domain: self.trust_domain,
            cert_ttl: self.options.cert_ttl,
            status: sync,
            metrics,
            captures_only: self.options.captures_only,
            stopping: stopping.clone(),
        };
        let server = serve::serve(listener, self.certificates, services);
        let server = tokio::spawn(server);
        synced.set(true);
        info!("ready");

        stop.await;
        stopping.cancel();
        let served = tokio::time::timeout(STOP_WITHIN, server).await;
        for task in [source, pipeline, renewal].into_iter().chain(further) {
            task.abort();
        }
        drain.finish(STOP_WITHIN).await;
        admin.abort();
        if let Ok(Ok(Err(error))) = served {
            return Err(error).context("serving failed");
        }
        info!("stopped");
        Ok(())
    }
}

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(options: Options) -> Result<()> {
    let log = runtime::log::init(options.log_format, &options.log).context("--log")?;
    let prepared = Prepared::new(options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen().context("cannot listen for SIGTERM and SIGINT")?;
        let stop = async move {
            let signal = signals.next().await;
            info!(%signal, "stopping");
        };
        prepared.run(Some(log), stop).await
    })
}

/// The administrator's CA, else the root that was generated at the first start.
fn authority(options: &Options) -> Result<Authority> {
    if let Some(cacerts) = &options.cacerts {
        return Authority::load(cacerts, system_clock())
            .with_context(|| format!("--cacerts {}", cacerts.display()));
    }
    let certificate = options.state_dir.join("root-cert.pem");
    let key = options.state_dir.join("root-key.pem");
    if key.exists() {
        let read = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let pem = AuthorityPem {
            certificate: read(&certificate)?,
            key: read(&key)?,
        };
        return Authority::from_pem(&pem, system_clock()).with_context(|| {
            format!("the CA root in --state-dir {} cannot be used; restore it, or remove both root-*.pem to make a new one", options.state_dir.display())
        });
    }
    let authority = Authority::generate(&options.trust_domain, system_clock())?;
    let pem = authority.to_pem();
    // The key last: with it the root is complete.
    atomic_write_mode(&certificate, pem.certificate.as_bytes(), PUBLIC)?;
    atomic_write_mode(&key, pem.key.as_bytes(), PRIVATE)?;
    info!(root = %certificate.display(), "made a new CA root");
    Ok(authority)
}

/// Where the cluster is and who we are to it.
fn cluster(kubeconfig: Option<&Path>) -> Result<kube::Config> {
    // Reading a kubeconfig may start a program that logs in, so this asks for a runtime of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let read = async {
        let Some(path) = kubeconfig else {
            return kube::Config::infer().await.context(
                "--kubernetes: this program runs in no pod, and no kubeconfig can be read",
            );
        };
        let named = Kubeconfig::read_from(path)
            .with_context(|| format!("--kubeconfig {}", path.display()))?;
        kube::Config::from_custom_kubeconfig(named, &KubeConfigOptions::default())
            .await
            .with_context(|| format!("--kubeconfig {}", path.display()))
    };
    runtime.block_on(read)
}

/// The root that the cluster keeps for all controllers.
fn cluster_root(config: &kube::Config, namespace: &str, options: &Options) -> Result<Authority> {
    // A client belongs to the runtime that it was made in, and this one ends here.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = kube::Client::try_from(config.clone()).context("--kubernetes")?;
        let place = place(client, namespace, options);
        place.find().await.context("--ca-namespace")
    })
}

fn place(client: kube::Client, namespace: &str, options: &Options) -> root::Place {
    root::Place {
        client,
        namespace: namespace.to_owned(),
        trust_domain: options.trust_domain.clone(),
        state_dir: options.state_dir.clone(),
        life: options.cert_ttl,
    }
}

/// Makes the state folder for this user alone.
fn private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("--state-dir {}: cannot create the folder", path.display()))?;
    let mode = fs::metadata(path)
        .with_context(|| format!("--state-dir {}", path.display()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).with_context(|| {
            format!(
                "--state-dir {} holds the CA key and is open to others; run chmod 700",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// How long open calls may take to end after a signal.
const STOP_WITHIN: Duration = Duration::from_secs(2);
