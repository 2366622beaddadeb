//! A client that says exactly the bytes it is told to, right or wrong.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const OPTION_EXPORT_NAME: u32 = 1;
pub const OPTION_GO: u32 = 7;
pub const COMMAND_READ: u16 = 0;
pub const COMMAND_WRITE: u16 = 1;

/// Long enough for a busy machine, short enough to notice a server that never answers.
const PATIENCE: Duration = Duration::from_secs(15);

pub struct Raw(pub UnixStream);

impl Raw {
    /// Connects and reads the server's greeting.
    pub fn connect(socket: &Path) -> Raw {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw(stream);
        let greeting = raw.receive::<18>().expect("a greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        raw
    }

    /// Connects and negotiates the default export with simple replies.
    pub fn negotiated(socket: &Path) -> Raw {
        let mut raw = Raw::connect(socket);
        raw.send(&3u32.to_be_bytes());
        raw.option(OPTION_EXPORT_NAME, b"");
        raw.receive::<10>().expect("size and flags");
        raw
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    pub fn request(&mut self, command: u16, offset: u64, length: u32) {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.send(&bytes);
    }

    /// The error of a simple reply; None when the server closed the connection.
    pub fn reply(&mut self) -> Option<u32> {
        let reply = self.receive::<16>()?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        assert_eq!(reply[8..], 7u64.to_be_bytes());
        Some(u32::from_be_bytes(reply[4..8].try_into().unwrap()))
    }

    /// A server that has hung up already is no failure of the test.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn receive<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    /// Reads until the server closes; false when it did not within the patience.
    pub fn is_closed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.0.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
