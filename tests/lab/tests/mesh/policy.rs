//! What is allowed, to whom, and how changes arrive: PeerAuthentication and AuthorizationPolicy end to end.

mod broken;
mod live;
mod modes;
mod town;
mod verdicts;
