//! `Secret`, as far as it is a certificate with its key.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};

use crate::ObjectMeta;

/// A `Secret`. What it holds is never shown and never written anywhere.
#[derive(Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Secret {
    /// Who it is.
    pub metadata: ObjectMeta,
    /// Of what kind it is, such as `kubernetes.io/tls`.
    pub r#type: String,
    /// What it holds.
    #[serde(skip_serializing)]
    pub data: BTreeMap<String, ByteString>,
    /// The same as text; it stands over `data`.
    #[serde(skip_serializing)]
    pub string_data: BTreeMap<String, String>,
    /// It never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutable: Option<bool>,
}

impl Secret {
    /// One entry.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let text = self.string_data.get(name).map(String::as_bytes);
        text.or_else(|| self.data.get(name).map(|bytes| bytes.0.as_slice()))
    }
}

impl fmt::Debug for Secret {
    /// Without what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        write!(f, "Secret({name})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_and_neither_shown_nor_written() {
        let text = r#"{"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.key": "aGlkZGVu"}, "stringData": {"tls.crt": "seen"}}"#;
        let secret: Secret = serde_json::from_str(text).unwrap();
        assert_eq!(secret.get("tls.key"), Some(&b"hidden"[..]));
        assert_eq!(secret.get("tls.crt"), Some(&b"seen"[..]));
        let shown = format!("{secret:?}") + &serde_json::to_string(&secret).unwrap();
        assert!(
            !shown.contains("hidden") && !shown.contains("aGlkZGVu") && !shown.contains("seen")
        );
    }
}
