//! Protocols that two servers never say alike, whatever their content, by how they begin: keys and
//! random numbers (TLS, SSH), or a compression whose state depends on all that was said (HTTP/2).
//!
//! Reads the first bytes of either side, never more than [`BYTES_MAX`]; keeps nothing.
//! RFC 8446 5.1, RFC 4253 4.2, RFC 9113 3.4.

/// How many bytes tell a protocol at most.
pub const BYTES_MAX: usize = 16;

/// A protocol that is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Opaque {
    /// TLS, and what runs in it.
    Tls,
    /// SSH.
    Ssh,
    /// HTTP/2 without TLS.
    Http2,
}

/// What the client's first bytes are the beginning of, if they tell.
pub fn of_client(bytes: &[u8]) -> Option<Opaque> {
    match *bytes {
        // A record of the handshake, of any version, with a ClientHello in it.
        [0x16, 3, 0..=4, _, _, 1, ..] => Some(Opaque::Tls),
        _ if bytes.starts_with(b"PRI * HTTP/2.0\r\n") => Some(Opaque::Http2),
        _ => of_either(bytes),
    }
}

/// What the server's first bytes are the beginning of, if they tell.
pub fn of_server(bytes: &[u8]) -> Option<Opaque> {
    of_either(bytes)
}

fn of_either(bytes: &[u8]) -> Option<Opaque> {
    bytes.starts_with(b"SSH-").then_some(Opaque::Ssh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_by_their_first_bytes() {
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
        assert_eq!(of_client(&hello), Some(Opaque::Tls));
        assert_eq!(of_client(b"SSH-2.0-OpenSSH_9.9\r\n"), Some(Opaque::Ssh));
        assert_eq!(of_server(b"SSH-2.0-OpenSSH_9.9\r\n"), Some(Opaque::Ssh));
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(of_client(preface), Some(Opaque::Http2));
        // Not before they do.
        for (whole, until) in [(&hello[..], 6), (preface, BYTES_MAX), (b"SSH-", 4)] {
            for len in 0..until {
                assert_eq!(of_client(&whole[..len]), None, "{len} bytes");
            }
            assert!(until <= BYTES_MAX && of_client(&whole[..until]).is_some());
        }
    }

    #[test]
    fn what_is_compared_is_not_taken_for_them() {
        let hello_of_a_server = [0x16, 3, 3, 0, 0x7a, 2, 0, 0];
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI / HTTP/1.1\r\n\r\n",
            b"220 ready\r\n",
            b"\x16\x02\x01\0\0\x01",
            &hello_of_a_server,
        ] {
            assert_eq!((of_client(bytes), of_server(bytes)), (None, None), "{bytes:?}");
        }
    }
}
