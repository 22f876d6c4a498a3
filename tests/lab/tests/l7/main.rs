//! Waypoints in the mesh: attached by a label, driven by Istio's own objects, asked with curl.

mod acceptance;
mod bypass;
mod crowd;
mod explained;
mod fixture;
mod gateway;
mod idle;
mod ingress;
mod led;
mod rolling;
mod routes;
mod rules;
mod shown;
mod spread;
mod table;
