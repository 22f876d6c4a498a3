//! The API server of a cluster, with the rights of whoever calls, and its refusals in sentences.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::{Builder, Runtime};

/// Which cluster, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Access {
    /// The kubeconfig. KUBECONFIG and ~/.kube/config are read if none is named.
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, instead of its current one.
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
}

/// A way to an API server. Its calls wait.
pub(crate) struct Api {
    pub(crate) client: Client,
    runtime: Runtime,
    server: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// What was asked of the API server, for the sentence that says why it did not work.
#[derive(Clone, Debug)]
pub(crate) struct Deed {
    verb: &'static str,
    resource: String,
    namespace: Option<String>,
}

impl Deed {
    /// `list nodes`, in the whole cluster.
    pub(crate) fn new(verb: &'static str, resource: impl Into<String>) -> Self {
        Self {
            verb,
            resource: resource.into(),
            namespace: None,
        }
    }

    /// The same, in a namespace.
    pub(crate) fn within(self, namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.to_owned()),
            ..self
        }
    }

    fn text(&self) -> String {
        let namespace = self.namespace.as_ref();
        let within = namespace.map_or_else(String::new, |name| format!(" in namespace {name}"));
        format!("{} {}{within}", self.verb, self.resource)
    }
}

impl Access {
    /// Reads the kubeconfig. Nobody is called yet.
    pub(crate) fn connect(&self) -> Result<Api> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = runtime.block_on(async {
            let kubeconfig = match &self.kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            match kubeconfig {
                Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .context("the kubeconfig names no cluster that can be used"),
                // In a pod.
                Err(error) if self.kubeconfig.is_none() && self.context.is_none() => {
                    Config::incluster().map_err(|_no_pod| error.into())
                }
                Err(error) => Err(error.into()),
            }
        });
        let mut config: Config = config.context(
            "no cluster is named; --kubeconfig or KUBECONFIG names one, --lab asks a lab of this machine",
        )?;
        config.connect_timeout = Some(CONNECTS_WITHIN);
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let client = {
            let _entered = runtime.enter();
            Client::try_from(config).context("the kubeconfig cannot be used")?
        };
        Ok(Api {
            client,
            runtime,
            server,
        })
    }
}

impl Api {
    /// Where it is.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Waits for something.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// The API server does not do it: with a sentence that says why.
    pub(crate) fn call<T>(
        &self,
        deed: &Deed,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<T> {
        self.wait(future).map_err(|error| self.said(deed, error))
    }

    /// The same, where that something is not there is no error.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) fn find<T>(
        &self,
        deed: &Deed,
        future: impl Future<Output = kube::Result<T>>,
    ) -> Result<Option<T>> {
        match self.wait(future) {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.said(deed, error)),
        }
    }

    /// Why something did not work.
    pub(crate) fn said(&self, deed: &Deed, error: kube::Error) -> anyhow::Error {
        use kube::client::UpgradeConnectionError::ProtocolSwitch;

        let what = deed.text();
        match error {
            kube::Error::Api(status) => match status.code {
                403 => anyhow!(Forbidden {
                    what,
                    said: Some(status.message)
                }),
                401 => anyhow!(
                    "the API server at {} does not take these credentials (401): have they ended, or are they another cluster's?",
                    self.server
                ),
                code => anyhow!("cannot {what}: {code}: {}", status.message),
            },
            kube::Error::UpgradeConnection(ProtocolSwitch(code)) if code == 403 => {
                anyhow!(Forbidden { what, said: None })
            }
            kube::Error::UpgradeConnection(error) => anyhow!("cannot {what}: {error}"),
            kube::Error::HyperError(_) | kube::Error::Service(_) => {
                let whole = anyhow::Error::from(error);
                // The outer sentences only say that there was an error.
                let cause = whole.root_cause().to_string();
                anyhow!("no cluster answers at {}: {cause}", self.server)
            }
            other => anyhow::Error::from(other).context(format!("cannot {what}")),
        }
    }
}

/// The caller lacks a right.
#[derive(Debug)]
pub(crate) struct Forbidden {
    what: String,
    said: Option<String>,
}

impl std::fmt::Display for Forbidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "you may not {}", self.what)?;
        match &self.said {
            Some(said) => write!(f, ": {said}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Forbidden {}

/// An API server that is there answers sooner.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
