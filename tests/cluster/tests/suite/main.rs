//! What a user of any cluster sees, through its API server alone.

mod captures;
mod control_plane;
mod controller;
mod faults;
mod replicas;
mod smoke;
mod tokens;
