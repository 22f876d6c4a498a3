//! The headers of [B3](https://github.com/openzipkin/b3-propagation), that of a single line and those of several.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The client has left the decision whether the trace is sampled to whoever comes after it. It is no flag of W3C's.
pub(super) const DEFERRED: TraceFlags = TraceFlags::new(0x80);

/// The span that a request belongs to. The single line counts before the several.
pub(super) fn extract(headers: &HeaderMap) -> Option<SpanContext> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    if let Some(single) = text(&SINGLE) {
        let mut parts = single.split('-');
        let (trace, span) = (parts.next()?, parts.next()?);
        return context(trace, span, parts.next());
    }
    // A trace that is debugged is sampled, whatever else is said.
    let sampled = match text(&FLAGS) {
        Some("1") => Some("1"),
        _ => text(&SAMPLED),
    };
    context(text(&TRACE)?, text(&SPAN)?, sampled)
}

fn context(trace: &str, span: &str, sampled: Option<&str>) -> Option<SpanContext> {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // 64 bits are the lower half of a trace's number.
    if ![16, 32].contains(&trace.len()) || span.len() != 16 || !hex(trace) || !hex(span) {
        return None;
    }
    let flags = match sampled {
        Some("1" | "d" | "true") => TraceFlags::SAMPLED,
        Some("0" | "false") => TraceFlags::NOT_SAMPLED,
        None => DEFERRED,
        Some(_) => return None,
    };
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        flags,
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

/// Says which span the request belongs to from here on. The single line is written only where there was one.
pub(super) fn inject(headers: &mut HeaderMap, span: &SpanContext, parent: Option<SpanId>) {
    let sampled = if span.is_sampled() { "1" } else { "0" };
    if headers.contains_key(&SINGLE) {
        let mut line = format!("{}-{}-{sampled}", span.trace_id(), span.span_id());
        if let Some(parent) = parent {
            line.push_str(&format!("-{parent}"));
        }
        set(headers, SINGLE, &line);
    }
    headers.remove(FLAGS);
    headers.remove(PARENT);
    set(headers, TRACE, &span.trace_id().to_string());
    set(headers, SPAN, &span.span_id().to_string());
    set(headers, SAMPLED, sampled);
    if let Some(parent) = parent {
        set(headers, PARENT, &parent.to_string());
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN_ID: &str = "00f067aa0ba902b7";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::try_from(*value).unwrap();
                (HeaderName::from_static(name), value)
            })
            .collect()
    }

    fn read(lines: &[(&'static str, &str)]) -> Option<(String, String, TraceFlags)> {
        let found = extract(&headers(lines))?;
        Some((
            found.trace_id().to_string(),
            found.span_id().to_string(),
            found.trace_flags(),
        ))
    }

    #[test]
    fn both_forms_say_the_same() {
        let expected = |flags| Some((TRACE_ID.to_owned(), SPAN_ID.to_owned(), flags));
        for (sampled, flags) in [
            (Some("1"), TraceFlags::SAMPLED),
            (Some("0"), TraceFlags::NOT_SAMPLED),
            (None, DEFERRED),
        ] {
            let end = sampled.map_or_else(String::new, |sampled| format!("-{sampled}"));
            let single = format!("{TRACE_ID}-{SPAN_ID}{end}");
            assert_eq!(read(&[("b3", &single)]), expected(flags), "F108 {single}");
            let mut several = vec![("x-b3-traceid", TRACE_ID), ("x-b3-spanid", SPAN_ID)];
            several.extend(sampled.map(|sampled| ("x-b3-sampled", sampled)));
            assert_eq!(read(&several), expected(flags), "F108 {several:?}");
        }
        let debugged = [
            ("x-b3-traceid", TRACE_ID),
            ("x-b3-spanid", SPAN_ID),
            ("x-b3-flags", "1"),
        ];
        assert_eq!(read(&debugged), expected(TraceFlags::SAMPLED));
        let short = [
            ("x-b3-traceid", "a3ce929d0e0e4736"),
            ("x-b3-spanid", SPAN_ID),
        ];
        let (trace, ..) = read(&short).unwrap();
        assert_eq!(trace, "0000000000000000a3ce929d0e0e4736");
    }

    #[test]
    fn what_is_no_context_is_none() {
        let zeros = format!("{}-{SPAN_ID}-1", "0".repeat(32));
        let unknown = format!("{TRACE_ID}-{SPAN_ID}-9");
        for single in ["0", "1", "-", "a-b-1", &zeros, &unknown] {
            assert_eq!(read(&[("b3", single)]), None, "{single}");
        }
        assert_eq!(read(&[("x-b3-traceid", TRACE_ID)]), None);
        assert_eq!(read(&[]), None);
        // A sign is no digit.
        let signed = format!("+{}", "a".repeat(15));
        let signed = [("x-b3-traceid", signed.as_str()), ("x-b3-spanid", SPAN_ID)];
        assert_eq!(read(&signed), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let before = format!("{TRACE_ID}-{SPAN_ID}-1");
        let mut all = headers(&[("b3", &before), ("x-b3-flags", "1")]);
        let parent = extract(&all).unwrap();
        let span = SpanContext::new(
            parent.trace_id(),
            SpanId::from_hex("1111111111111111").unwrap(),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        );
        inject(&mut all, &span, Some(parent.span_id()));
        assert_eq!(extract(&all).unwrap().span_id(), span.span_id());
        assert_eq!(all["x-b3-parentspanid"], SPAN_ID);
        assert_eq!(all["x-b3-sampled"], "1");
        assert!(!all.contains_key("x-b3-flags"));
        all.remove("b3");
        assert_eq!(extract(&all).unwrap().span_id(), span.span_id());
    }
}
