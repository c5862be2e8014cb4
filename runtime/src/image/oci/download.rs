//! A blob on its way from a registry, which goes on where a connection broke.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;
use std::time::Duration;

use super::registry::{Client, TRIES};
use super::types::Descriptor;
use crate::error::{Error, Result};

/// A connection that brought so many bytes was of use, whatever became of it.
const OF_USE: u64 = 64 << 10;

/// A blob as it arrives, from `start` on. A connection that breaks is made again, and goes on where it was.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) descriptor: Descriptor,
    pub(super) at: u64,
    pub(super) body: Option<Box<dyn Read>>,
    pub(super) failures: u32,
    /// What this connection has brought.
    pub(super) arrived: u64,
    /// The reason for an error, which does not fit into one of a reader.
    pub(super) why: Rc<RefCell<Option<Error>>>,
}

impl Download<'_> {
    fn open(&mut self) -> Result<Box<dyn Read>> {
        let url = self.client.blob_url(&self.descriptor);
        let range = format!("bytes={}-", self.at);
        let what = format!("layer {} of docker://{}", self.descriptor.digest.short(), self.client.reference);
        let headers: &[(&str, &str)] = if self.at > 0 { &[("Range", &range)] } else { &[] };
        let answer = self.client.ask(&url, headers, &what)?;
        let begins = match answer.status() {
            206 => {
                let told = answer.header("Content-Range").and_then(|text| text.trim().strip_prefix("bytes "));
                told.and_then(|text| text.split('-').next())
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(self.at)
            }
            _ => 0,
        };
        let mut body = answer.reader();
        // A registry that knows no ranges sends all of it again.
        if begins > self.at || io::copy(&mut body.by_ref().take(self.at - begins), &mut io::sink()).is_err() {
            return Err(self.broke("the registry did not go on where the download had broken off"));
        }
        Ok(body)
    }

    fn broke(&self, why: &str) -> Error {
        let (digest, host) = (self.descriptor.digest.short(), &self.client.reference.host);
        Error::new(format!("the download of layer {digest} from {host} broke off"))
            .because(why)
            .because(format!("{} of {} bytes have arrived", self.at, self.descriptor.size))
            .help("try again: it goes on where it was")
    }

    fn give_up(&self, error: Error) -> io::Error {
        let short = io::Error::other(error.to_string());
        *self.why.borrow_mut() = Some(error);
        short
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.descriptor.size - self.at.min(self.descriptor.size);
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            if most == 0 {
                return Ok(0);
            }
            let body = match &mut self.body {
                Some(body) => body,
                None => match self.open() {
                    Ok(body) => self.body.insert(body),
                    Err(error) => return Err(self.give_up(error)),
                },
            };
            let why = match body.read(&mut buffer[..most]) {
                Ok(0) => "the connection was closed".to_owned(),
                Ok(n) => {
                    self.at += n as u64;
                    self.arrived += n as u64;
                    // Else one that sends a byte at a time would be asked for ever.
                    if self.arrived >= OF_USE {
                        self.failures = 0;
                    }
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => crate::image::io_words(&e),
            };
            self.body = None;
            self.arrived = 0;
            self.failures += 1;
            if self.failures >= TRIES {
                let error = self.broke(&why);
                return Err(self.give_up(error));
            }
            std::thread::sleep(Duration::from_millis(200 << self.failures));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::oci::Options;
    use crate::image::oci::digest::Digest;
    use crate::image::oci::reference::Reference;
    use crate::image::watch::Nobody;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Each connection gets ten bytes of a hundred and then nothing, but stays open.
    fn falls_silent(listener: &TcpListener, seen: &AtomicU32) -> Vec<TcpStream> {
        let mut open = Vec::new();
        while seen.load(Ordering::Relaxed) < TRIES {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 2048];
            let _ = stream.read(&mut asked).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789").unwrap();
            open.push(stream);
            seen.fetch_add(1, Ordering::Relaxed);
        }
        open
    }

    #[test]
    fn a_registry_that_falls_silent_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let name = format!("{}/some/image", listener.local_addr().unwrap());
        let seen = AtomicU32::new(0);
        let told = std::thread::scope(|scope| {
            let server = scope.spawn(|| falls_silent(&listener, &seen));
            let reference = Reference::parse(&name).unwrap();
            let client =
                Client::patient(&reference, &Options::default(), &Nobody, Duration::from_millis(700));
            let digest = Digest::of(b"what it should be");
            let descriptor = serde_json::from_value::<Descriptor>(
                serde_json::json!({"digest": digest.as_str(), "size": 100}),
            )
            .unwrap();
            let why = Rc::new(RefCell::new(None));
            let mut download = Download {
                client: &client,
                descriptor,
                at: 0,
                body: None,
                failures: 0,
                arrived: 0,
                why: Rc::clone(&why),
            };
            let mut got = Vec::new();
            download.read_to_end(&mut got).unwrap_err();
            assert_eq!(got, b"0123456789");
            drop(server.join().unwrap());
            why.take().unwrap()
        });
        assert_eq!(seen.load(Ordering::Relaxed), TRIES);
        let told = format!("{told}\n{}", told.help.as_deref().unwrap_or_default());
        insta::assert_snapshot!(told.replace(&name[..name.find('/').unwrap()], "HOST"), @"
        the download of layer a819e2a793eb from HOST broke off: nothing has arrived for too long: 10 of 100 bytes have arrived
        try again: it goes on where it was
        ");
    }
}
