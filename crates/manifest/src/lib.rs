//! Manifests: documents as objects, and findings about them that need the object alone.
//!
//! [`read_file`] reads the text of a file as objects of the kinds that Keelson understands, with the line of each field,
//! and says what is wrong: syntax, types, misspelt fields, and what an API server would refuse. The folder source, the
//! admission webhook and the command line share it, so that a person reads the same sentence everywhere. Nothing here
//! knows other objects or the mesh.

mod decode;
mod diagnostic;
mod document;
mod fields;
mod lines;
mod names;
mod object;
mod pod;
mod suggest;
mod tree;
mod validate;
mod written;

pub use decode::{Claim, Decoded, USE_WAYPOINT, read_file, read_object};
pub use diagnostic::{Diagnostic, Severity};
pub use lines::FieldLines;
pub use object::{
    Authorship, BrokenPolicy, Kind, Labels, NamespacedName, Object, ObjectKey, ObjectKind, Origin,
    PolicyKind, Upsert,
};
pub use pod::{ContainerPort, OwnerType, POD_IPS, PodFacts, REDIRECTION, WEIGHT};
pub use written::{Written, written};
