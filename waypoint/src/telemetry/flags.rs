//! Why a request went as it did, in the words that users know from Envoy.

/// A response flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Flag {
    /// No rule applies.
    NoRoute,
    /// The rule names a cluster that is not known.
    NoCluster,
    /// No endpoint is healthy.
    NoHealthy,
    /// No connection to an endpoint could be made.
    ConnectFailure,
    /// A connection to an endpoint broke before its answer.
    ConnectionTermination,
    /// What an endpoint answered is no answer to what it was asked.
    EndpointProtocol,
    /// A limit is reached.
    Overflow,
    /// The time for the request is over.
    Timeout,
    /// The client did not go on for too long.
    StreamIdle,
    /// All attempts failed.
    RetryLimit,
    /// The client went away.
    ClientGone,
    /// What the client sent is no request.
    ClientProtocol,
    /// It was delayed on purpose.
    DelayInjected,
    /// It was answered with an error on purpose.
    FaultInjected,
}

impl Flag {
    /// As log and metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthy => "UH",
            Self::ConnectFailure => "UF",
            Self::ConnectionTermination => "UC",
            Self::EndpointProtocol => "UPE",
            Self::Overflow => "UO",
            Self::Timeout => "UT",
            Self::StreamIdle => "SI",
            Self::RetryLimit => "URX",
            Self::ClientGone => "DC",
            Self::ClientProtocol => "DPE",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
        }
    }
}

/// Flags as log and metrics write them: `-` if there are none.
pub(crate) fn join(flags: &[Flag]) -> std::borrow::Cow<'static, str> {
    match flags {
        [] => "-".into(),
        [one] => one.as_str().into(),
        many => {
            let words: Vec<&str> = many.iter().map(|flag| flag.as_str()).collect();
            words.join(",").into()
        }
    }
}
