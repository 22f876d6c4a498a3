//! The acceptance rows of the requirements by their ids: applications and rules from the manifests that users apply,
//! asked with curl, through controller, agents, waypoints and gateways.
//!
//! A file is an application with one lab of its own. The manifests are applied as they are in `tests/lab/fixtures`; in the
//! place of each image runs one page, [`testkit::Page`].

mod book;
mod bookinfo;
mod connections;
mod doors;
mod egress;
mod locality;
mod passing;
mod sock_shop;
mod stand;
mod workshop;
