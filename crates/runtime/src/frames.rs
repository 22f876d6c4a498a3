//! Messages on a byte stream, each behind its length in 4 bytes (network order).

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::codec::{Decoder as _, Encoder as _, LengthDelimitedCodec};

/// What has been read of a stream and is no whole message yet.
#[derive(Debug)]
pub struct Frames {
    codec: LengthDelimitedCodec,
    bytes: BytesMut,
}

impl Frames {
    /// Messages of at most so many bytes.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        Self::after(BytesMut::new(), longest)
    }

    /// The same on a stream of which these bytes have been read.
    #[must_use]
    pub fn after(before: BytesMut, longest: usize) -> Self {
        let mut codec = LengthDelimitedCodec::new();
        codec.set_max_frame_length(longest);
        Self {
            codec,
            bytes: before,
        }
    }

    /// The next message; `None` where the stream ends. A call that is given up loses nothing.
    ///
    /// # Errors
    /// The stream breaks, ends within a message, or one is too long.
    pub async fn next<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
    ) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(message) = self.codec.decode(&mut self.bytes)? {
                return Ok(Some(message));
            }
            if stream.read_buf(&mut self.bytes).await? == 0 {
                return self.codec.decode_eof(&mut self.bytes);
            }
        }
    }

    /// Writes a message.
    ///
    /// # Errors
    /// The stream breaks, or the message is too long.
    pub async fn send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        message: Vec<u8>,
    ) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        self.codec.encode(Bytes::from(message), &mut bytes)?;
        stream.write_all(&bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_whole_and_in_their_order() {
        let (mut near, mut far) = tokio::io::duplex(7);
        let sending = tokio::spawn(async move {
            let mut frames = Frames::new(64);
            for message in [vec![1; 20], Vec::new(), vec![2; 3]] {
                frames.send(&mut near, message).await.unwrap();
            }
        });
        let mut frames = Frames::new(64);
        let mut read = Vec::new();
        while let Some(message) = frames.next(&mut far).await.unwrap() {
            read.push(message.to_vec());
        }
        sending.await.unwrap();
        assert_eq!(read, [vec![1; 20], Vec::new(), vec![2; 3]]);
    }

    #[tokio::test]
    async fn one_that_is_too_long_or_cut_is_an_error() {
        let read = |bytes: &'static [u8]| async move {
            let mut frames = Frames::after(BytesMut::from(bytes), 64);
            frames.next(&mut tokio::io::empty()).await
        };
        assert!(read(&[0, 0, 0, 65]).await.is_err());
        assert!(read(&[0, 0, 0, 2, 1]).await.is_err());
        assert!(read(&[0, 0]).await.is_err());
        assert!(read(&[]).await.unwrap().is_none());
    }
}
