//! What goes on without the controller, and what comes back with it; what broken manifests do to others.

mod away;
mod defects;
mod mesh;
mod sandboxes;
