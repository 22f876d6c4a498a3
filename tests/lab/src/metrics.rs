//! The numbers on a metrics page, found by name and labels.

use anyhow::{Result, ensure};
use lab::Lab;

/// The samples of one page.
#[derive(Debug)]
pub struct Metrics(String);

/// One line of a metrics page.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    name: &'a str,
    labels: &'a str,
    /// Its value.
    pub value: f64,
}

impl Metrics {
    /// A page that somebody has fetched.
    #[must_use]
    pub fn new(page: String) -> Self {
        Self(page)
    }

    /// The page of the agent of a node.
    ///
    /// # Errors
    ///
    /// Fails where the agent does not answer.
    pub fn of_agent(lab: &Lab, node: &str) -> Result<Self> {
        Ok(Self(lab.agent_get(node, "/stats/prometheus")?))
    }

    /// The page of the controller.
    ///
    /// # Errors
    ///
    /// Fails where the controller does not answer.
    pub fn of_controller(lab: &Lab) -> Result<Self> {
        Ok(Self(lab.controller_get("/stats/prometheus")?))
    }

    /// The samples of this name whose labels include these.
    pub fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<Sample<'_>> {
        let samples = self.0.lines().filter_map(Sample::parse);
        samples
            .filter(|sample| sample.name == name && sample.has(labels))
            .collect()
    }

    /// Their sum, which may be zero.
    ///
    /// # Errors
    ///
    /// Says the name and the labels where the page has no such sample.
    pub fn present(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let samples = self.samples(name, labels);
        ensure!(!samples.is_empty(), "no sample of {name} with {labels:?}");
        Ok(samples.iter().map(|sample| sample.value).sum())
    }

    /// Their sum; zero where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let samples = self.samples(name, labels);
        samples.iter().map(|sample| sample.value).sum()
    }
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        Some(Self {
            name,
            labels: labels.strip_suffix('}')?,
            value: value.parse().ok()?,
        })
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.label(name) == Some(value))
    }

    /// The value of one label. Values of this mesh hold no quotes.
    pub fn label(&self, wanted: &str) -> Option<&'a str> {
        self.labels.split("\",").find_map(|pair| {
            let (name, value) = pair.split_once("=\"")?;
            (name == wanted).then_some(value.trim_end_matches('"'))
        })
    }

    /// The names of all labels.
    pub fn label_names(&self) -> Vec<&'a str> {
        let pairs = self.labels.split("\",");
        pairs
            .filter_map(|pair| Some(pair.split_once("=\"")?.0))
            .collect()
    }
}

/// How many connections a node's agent has refused for this reason.
///
/// # Errors
///
/// Fails where the agent does not answer.
pub fn refused(lab: &Lab, node: &str, reason: &str) -> Result<f64> {
    let metrics = Metrics::of_agent(lab, node)?;
    Ok(metrics.sum("keelson_connections_refused_total", &[("reason", reason)]))
}

/// One number of the page of a node's agent, which may be zero.
///
/// # Errors
///
/// Fails where the agent does not answer, or its page has no such sample.
pub fn metric(lab: &Lab, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Metrics::of_agent(lab, node)?.present(name, labels)
}

/// How often the kernel half of a node has decided so, whatever other labels the counter has.
///
/// # Errors
///
/// Fails where the agent does not answer or knows no such reason.
pub fn decisions(lab: &Lab, node: &str, reason: &str) -> Result<f64> {
    let labels = [("reason", reason)];
    metric(lab, node, "keelson_kernel_decisions_total", &labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let page =
            "# TYPE a counter\na_total{x=\"1\",y=\"b,c\"} 2\na_total{x=\"2\",y=\"\"} 3\nb 4\n";
        let metrics = Metrics(page.to_owned());
        assert!((metrics.sum("a_total", &[]) - 5.0).abs() < 1e-9);
        assert!((metrics.sum("a_total", &[("x", "1")]) - 2.0).abs() < 1e-9);
        assert!((metrics.sum("b", &[]) - 4.0).abs() < 1e-9);
        let samples = metrics.samples("a_total", &[("x", "1")]);
        assert!((metrics.present("a_total", &[("y", "")]).unwrap() - 3.0).abs() < 1e-9);
        assert!(metrics.present("a_total", &[("x", "3")]).is_err());
        assert_eq!(samples[0].label("y"), Some("b,c"));
        assert_eq!(samples[0].label_names(), ["x", "y"]);
    }
}
