//! What is allowed, to whom, and how changes arrive: PeerAuthentication and AuthorizationPolicy end to end.

mod broken;
mod command_line;
mod live;
mod mesh;
mod modes;
mod network;
mod verdicts;
