//! Lines for a person on standard output. Whoever closed it (`| head`) wants no more lines; the work goes
//! on to its end all the same, and cleans up after itself.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// Writes one line.
pub fn line(arguments: Arguments<'_>) {
    if let Err(error) = write_line(io::stdout().lock(), arguments) {
        // Standard error may be closed as well, and there is no third one.
        let _unread = writeln!(io::stderr(), "cannot write to standard output: {error}");
    }
}

fn write_line(mut out: impl Write, arguments: Arguments<'_>) -> io::Result<()> {
    match writeln!(out, "{arguments}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        let (reader, writer) = io::pipe().unwrap();
        write_line(&writer, format_args!("read by {}", "nobody")).unwrap();
        drop(reader);
        write_line(&writer, format_args!("written to nobody")).unwrap();
        let full = std::fs::File::create("/dev/full").unwrap();
        assert!(write_line(full, format_args!("x")).is_err());
    }
}
