//! How much to read at once: little while little comes, much while much comes.

/// Sizes in bytes. Nine bytes less than a round number: an HTTP/2 frame head and the payload fill
/// whole TLS records of 16 KiB.
///
/// The largest stays in a processor's cache from the read to the record that is made of it, and is
/// memory that the allocator hands out again instead of returning it to the kernel.
const SIZES: [usize; 3] = [2 << 10, (16 << 10) - FRAME_HEAD, (64 << 10) - FRAME_HEAD];
const FRAME_HEAD: usize = 9;

/// Small reads in a row after which the size goes down.
const PATIENCE: u8 = 4;

/// The size of the next read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReadSize {
    step: u8,
    small: u8,
}

impl ReadSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> usize {
        SIZES
            .get(usize::from(self.step))
            .copied()
            .unwrap_or(FRAME_HEAD)
    }

    /// Learns from a read of `read` bytes: a full one asks for more, a row of small ones for less.
    pub(crate) fn learn(&mut self, read: usize) {
        let size = self.bytes();
        if read >= size {
            self.small = 0;
            self.step = (self.step + 1).min(LAST);
        } else if read < size / 4 {
            self.small += 1;
            if self.small >= PATIENCE {
                self.small = 0;
                self.step = self.step.saturating_sub(1);
            }
        } else {
            self.small = 0;
        }
    }
}

const LAST: u8 = SIZES.len() as u8 - 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reads: &[usize]) -> usize {
        let mut size = ReadSize::default();
        for read in reads {
            size.learn(*read);
        }
        size.bytes()
    }

    #[test]
    fn it_grows_with_full_reads_and_stops_growing() {
        let full = 64 << 10;
        assert_eq!(after(&[]), SIZES[0]);
        assert_eq!(after(&[full]), SIZES[1]);
        assert_eq!(after(&[full, full]), SIZES[2]);
        assert_eq!(after(&[full; 10]), SIZES[2]);
    }

    #[test]
    fn small_reads_in_a_row_shrink_it() {
        let mut reads = vec![64 << 10; 2];
        reads.extend([1; 3]);
        assert_eq!(after(&reads), SIZES[2], "three are not enough");
        reads.push(1);
        assert_eq!(after(&reads), SIZES[1]);
        reads.extend([1; 100]);
        assert_eq!(after(&reads), SIZES[0]);
    }

    #[test]
    fn a_request_of_a_kibibyte_stays_small() {
        assert_eq!(after(&[1024; 100]), SIZES[0]);
    }
}
