//! A packet capture on one interface of a namespace: the judge of what crossed a wire.
//!
//! Frames are searched as they arrive, so a capture can run for a whole test, and the first ones
//! are kept within a bound; what the kernel or the bound dropped is counted, never ignored.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use memchr::memmem;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::packet::Packet;

/// A running capture; it ends when it is dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a capture keeps and looks for.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Bytes of frames to keep; later frames are counted and searched, but not kept.
    pub keep: usize,
    /// Byte strings to look for in the payload of every TCP and UDP packet that passes.
    pub needles: Vec<Vec<u8>>,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            keep: 64 << 20,
            needles: Vec::new(),
        }
    }
}

/// One Ethernet frame as it passed.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was read from the kernel.
    pub at: SystemTime,
    /// From the destination MAC address on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Its IP packet, or `None` for ARP and other things.
    #[must_use]
    pub fn packet(&self) -> Option<Packet<'_>> {
        Packet::parse(&self.bytes)
    }
}

/// What a capture has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Frames read.
    pub frames: u64,
    /// Frames read and searched, but not kept because `keep` was reached.
    pub not_kept: u64,
    /// Frames the kernel dropped before they were read: nothing can be said of those.
    pub lost: u64,
    /// Packets whose payload held the needle, in the order of [`CaptureOptions::needles`].
    pub hits: Vec<u64>,
}

impl Capture {
    /// Starts a capture on `interface` with the default options.
    ///
    /// # Errors
    /// The interface does not exist, or the caller may not open a packet socket.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        Self::start_with(netns, interface, CaptureOptions::default())
    }

    /// Starts a capture on `interface`.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_with(netns: &Netns, interface: &str, options: CaptureOptions) -> Result<Self> {
        let socket = netns
            .run(|| packet_socket(interface))?
            .with_context(|| format!("capturing on {interface} in {}", netns.name()))?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            seen: Mutex::new(Seen {
                frames: Vec::new(),
                kept: 0,
                counts: CaptureCounts {
                    hits: vec![0; options.needles.len()],
                    ..CaptureCounts::default()
                },
            }),
        });
        let reader = Reader {
            socket,
            options,
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || reader.read())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The frames kept so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.settle();
        self.shared.seen().frames.clone()
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counts(&self) -> CaptureCounts {
        self.settle();
        self.shared.seen().counts.clone()
    }

    /// Whether the payload of one kept TCP packet holds these bytes.
    ///
    /// Packets are searched one by one: bytes that a segment boundary cuts in two are not found.
    ///
    /// # Errors
    /// Frames were lost or not kept, so that "no" would mean nothing.
    pub fn contains(&self, bytes: &[u8]) -> Result<bool> {
        self.settle();
        let seen = self.shared.seen();
        let finder = memmem::Finder::new(bytes);
        let found = seen.frames.iter().filter_map(Frame::packet).any(|packet| {
            packet.protocol == libc::IPPROTO_TCP as u8 && finder.find(packet.payload).is_some()
        });
        let counts = &seen.counts;
        if !found && counts.lost + counts.not_kept > 0 {
            bail!(
                "the capture lost {} frames and did not keep {}: it cannot say what they held",
                counts.lost,
                counts.not_kept
            );
        }
        Ok(found)
    }

    /// How many kept frames satisfy `condition`.
    #[must_use]
    pub fn count(&self, mut condition: impl FnMut(&Packet<'_>) -> bool) -> usize {
        self.settle();
        let seen = self.shared.seen();
        let packets = seen.frames.iter().filter_map(Frame::packet);
        packets.filter(|packet| condition(packet)).count()
    }

    /// How many kept packets of this IP protocol have `port` as their source or destination.
    #[must_use]
    pub fn count_port(&self, protocol: u8, port: u16) -> usize {
        self.count(|packet| {
            packet.protocol == protocol
                && (packet.source_port == port || packet.destination_port == port)
        })
    }

    /// The connection attempts (SYN without ACK) of `source` among the kept packets.
    #[must_use]
    pub fn syns_from(&self, source: IpAddr) -> usize {
        self.count(|packet| packet.is_syn() && packet.source == source)
    }

    /// Forgets what was kept and counted, to look at what happens from now on.
    pub fn clear(&self) {
        self.settle();
        let mut seen = self.shared.seen();
        seen.frames.clear();
        seen.kept = 0;
        let needles = seen.counts.hits.len();
        seen.counts = CaptureCounts {
            hits: vec![0; needles],
            ..CaptureCounts::default()
        };
    }

    /// Writes the kept frames as a pcap file, which tcpdump and Wireshark read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_pcap(&self, path: &Path) -> Result<()> {
        let mut out = pcap_header().to_vec();
        for frame in self.frames() {
            let at = frame.at.duration_since(UNIX_EPOCH)?;
            let length = u32::try_from(frame.bytes.len())?;
            out.extend_from_slice(&u32::try_from(at.as_secs())?.to_le_bytes());
            out.extend_from_slice(&at.subsec_micros().to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&frame.bytes);
        }
        fs::write(path, out).with_context(|| format!("writing {}", path.display()))
    }

    /// Waits until the reader has emptied the kernel's queue, so that what was sent before a
    /// question is in its answer.
    fn settle(&self) {
        let mut before = self.shared.seen().counts.frames;
        for _ in 0..50 {
            thread::sleep(Duration::from_millis(10));
            let now = self.shared.seen().counts.frames;
            if now == before {
                return;
            }
            before = now;
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Seen {
    frames: Vec<Frame>,
    kept: usize,
    counts: CaptureCounts,
}

struct Reader {
    socket: Socket,
    options: CaptureOptions,
    shared: Arc<Shared>,
}

impl Reader {
    fn read(self) {
        let finders: Vec<_> = self
            .options
            .needles
            .iter()
            .map(memmem::Finder::new)
            .collect();
        let mut buffer = vec![MaybeUninit::uninit(); FRAME_MAX];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if is_timeout(&error) => {
                    self.count_lost();
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "a capture ends early");
                    self.shared.seen().counts.lost += 1;
                    return;
                }
            };
            let bytes = initialised(&buffer, length);
            self.take(bytes, &finders);
        }
    }

    fn take(&self, bytes: &[u8], finders: &[memmem::Finder<'_>]) {
        let packet = Packet::parse(bytes);
        let mut seen = self.shared.seen();
        seen.counts.frames += 1;
        if let Some(packet) = packet {
            for (hits, finder) in seen.counts.hits.iter_mut().zip(finders) {
                *hits += u64::from(finder.find(packet.payload).is_some());
            }
        }
        if seen.kept + bytes.len() > self.options.keep {
            seen.counts.not_kept += 1;
        } else {
            seen.kept += bytes.len();
            seen.frames.push(Frame {
                at: SystemTime::now(),
                bytes: bytes.to_vec(),
            });
        }
    }

    fn count_lost(&self) {
        match dropped_by_kernel(&self.socket) {
            Ok(0) => {}
            Ok(lost) => self.shared.seen().counts.lost += lost,
            Err(error) => tracing::warn!(%error, "a capture cannot ask what it lost"),
        }
    }
}

fn packet_socket(interface: &str) -> Result<Socket> {
    let index = nix::net::if_::if_nametoindex(interface).context("no such interface")?;
    let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    // Protocol 0 receives nothing until bind names an interface, so no foreign frame gets in.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
        .context("opening a packet socket (needs root)")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let socket_buffer = nix::sys::socket::sockopt::RcvBufForce;
    nix::sys::socket::setsockopt(&socket, socket_buffer, &RECEIVE_BUFFER)?;
    bind(&socket, index, protocol)?;
    Ok(socket)
}

fn bind(socket: &Socket, index: u32, protocol: u16) -> Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET)?,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    #[expect(
        unsafe_code,
        reason = "socket2 has no safe constructor for AF_PACKET addresses"
    )]
    // SAFETY: the pointer is to a live local, and the length is its size.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("binding a packet socket");
    }
    Ok(())
}

/// The frames dropped since the last call: `PACKET_STATISTICS` of packet(7).
fn dropped_by_kernel(socket: &Socket) -> io::Result<u64> {
    let mut statistics = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    #[expect(unsafe_code, reason = "no wrapper knows PACKET_STATISTICS")]
    // SAFETY: both pointers are to live locals and `length` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(statistics.tp_drops))
}

fn initialised(buffer: &[MaybeUninit<u8>], length: usize) -> &[u8] {
    let filled = buffer.get(..length).unwrap_or_default();
    #[expect(unsafe_code, reason = "socket2 receives into uninitialised memory")]
    // SAFETY: the kernel wrote the first `length` bytes of the buffer.
    unsafe {
        std::slice::from_raw_parts(filled.as_ptr().cast(), filled.len())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Little endian, microseconds, version 2.4, Ethernet.
fn pcap_header() -> [u8; 24] {
    let mut header = [0; 24];
    let fields: [(usize, u32); 5] = [
        (0, 0xa1b2_c3d4),
        (4, 0x0004_0002),
        (8, 0),
        (16, 1 << 18),
        (20, 1),
    ];
    for (at, value) in fields {
        for (byte, source) in header.iter_mut().skip(at).zip(value.to_le_bytes()) {
            *byte = source;
        }
    }
    header
}

/// More than the largest segment that offloading hands over.
const FRAME_MAX: usize = 512 << 10;
const RECEIVE_BUFFER: usize = 64 << 20;
