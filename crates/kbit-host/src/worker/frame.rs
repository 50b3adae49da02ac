//! Messages between host and worker: four bytes of length, then JSON; descriptors travel with the length.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// No message is longer: bulk data goes through shared memory.
const MAX_BYTES: usize = 64 << 20;
/// Descriptors that come with one message at most.
const MAX_DESCRIPTORS: usize = 2;

/// How receiving ended without a message.
#[derive(Debug)]
pub(super) enum NoFrame {
    /// The other side closed the connection.
    Closed,
    /// The time was up.
    TimedOut,
    /// Something else.
    Broken(io::Error),
}

impl From<io::Error> for NoFrame {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Closed
            }
            _ => Self::Broken(error),
        }
    }
}

fn invalid(reason: &str) -> NoFrame {
    NoFrame::Broken(io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()))
}

/// Sends `message` and copies of `descriptors`.
pub(super) fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), NoFrame> {
    let mut bytes = vec![0u8; 4];
    serde_json::to_writer(&mut bytes, message).map_err(|error| NoFrame::Broken(error.into()))?;
    let len = bytes.len() - 4;
    let Some(prefix) = u32::try_from(len).ok().filter(|_| len <= MAX_BYTES) else {
        return Err(invalid("the message is too long"));
    };
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(invalid("too many descriptors"));
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match rustix::net::sendmsg(socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                rest = &rest[sent..];
                control.clear();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

/// Waits until `socket` can be read. `tick` runs about every 50 ms meanwhile.
fn wait(socket: &UnixStream, deadline: Option<Instant>, tick: &mut dyn FnMut()) -> Result<(), NoFrame> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        tick();
        let mut pause = Duration::from_millis(50);
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NoFrame::TimedOut);
            }
            pause = pause.min(left);
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: pause.as_nanos().try_into().unwrap_or(50_000_000) };
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut polled, Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// Receives one message and the descriptors that came with it.
pub(super) fn receive<T: DeserializeOwned>(
    socket: &UnixStream,
    limit: Option<Duration>,
    tick: &mut dyn FnMut(),
) -> Result<(T, Vec<OwnedFd>), NoFrame> {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut descriptors = Vec::new();
    let mut prefix = [0u8; 4];
    fill(socket, &mut prefix, &mut descriptors, deadline, tick)?;
    let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if len > MAX_BYTES {
        return Err(invalid("a message of impossible length"));
    }
    let mut bytes = vec![0u8; len];
    fill(socket, &mut bytes, &mut descriptors, deadline, tick)?;
    let message = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(&format!("an unreadable message ({error})")))?;
    Ok((message, descriptors))
}

fn fill(
    socket: &UnixStream,
    mut rest: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    deadline: Option<Instant>,
    tick: &mut dyn FnMut(),
) -> Result<(), NoFrame> {
    while !rest.is_empty() {
        wait(socket, deadline, tick)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            socket.as_fd(),
            &mut [IoSliceMut::new(rest)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) => received.bytes,
            Err(Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        if count == 0 {
            return Err(NoFrame::Closed);
        }
        rest = &mut rest[count..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn messages_and_descriptors_arrive() {
        let (one, other) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let sender =
            std::thread::spawn(move || send(&one, &vec!["a".repeat(300_000)], &[writer.as_fd()]).is_ok());
        let (text, mut descriptors): (Vec<String>, _) = receive(&other, None, &mut || ()).unwrap();
        assert_eq!(text[0].len(), 300_000);
        assert!(sender.join().unwrap());
        let mut file = std::fs::File::from(descriptors.remove(0));
        file.write_all(b"x").unwrap();
        drop(file);
        let mut seen = Vec::new();
        { reader }.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"x");
    }

    #[test]
    fn a_silent_or_lying_peer_is_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        let silent = receive::<String>(&other, Some(Duration::from_millis(20)), &mut || ());
        assert!(matches!(silent, Err(NoFrame::TimedOut)));
        (&one).write_all(&[255; 4]).unwrap();
        assert!(matches!(receive::<String>(&other, None, &mut || ()), Err(NoFrame::Broken(_))));
        (&one).write_all(&[2, 0, 0, 0, b'{', b'x']).unwrap();
        assert!(matches!(receive::<String>(&other, None, &mut || ()), Err(NoFrame::Broken(_))));
        drop(one);
        assert!(matches!(receive::<String>(&other, None, &mut || ()), Err(NoFrame::Closed)));
    }
}
