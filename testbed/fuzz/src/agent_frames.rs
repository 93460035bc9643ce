//! Any bytes as the frame in a record of an agent's connection: it is none, or is written the same
//! way again, and what is packed in it unpacks to what it says or not at all.

use shadowvm::sync::agent::frame::{Frame, Purpose};
use shadowvm::sync::agent::pack::{Packer, unpack};

/// One record.
pub fn target(data: &[u8]) -> bool {
    let Ok(frame) = Frame::parse(data) else { return false };
    let mut again = Vec::new();
    frame.put(&mut again);
    assert_eq!(again, data);
    if let Frame::Packed { len, bytes, .. } = frame
        && let Some(piece) = unpack(bytes, len as usize)
    {
        assert_eq!(piece.len(), len as usize);
        if let Some(packed) = Packer::default().pack(&piece) {
            assert_eq!(unpack(packed, piece.len()).as_deref(), Some(&piece[..]));
        }
    }
    true
}

/// One frame of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let text = b"to be, or not to be ".repeat(30);
    let mut packer = Packer::default();
    let packed = packer.pack(&text).expect("text packs well");
    let frames = [
        Frame::Open { channel: 0, purpose: Purpose::Mirror },
        Frame::Open { channel: 1, purpose: Purpose::Health },
        Frame::Data { channel: 1, bytes: b"{}\n" },
        Frame::Packed { channel: 0, len: text.len() as u32, bytes: packed },
        Frame::Grant { channel: 0, bytes: 1 << 20 },
        Frame::Close { channel: 0, why: "no directory" },
        Frame::Close { channel: 1, why: "" },
        Frame::Ping,
    ];
    let put = |frame: &Frame<'_>| {
        let mut record = Vec::new();
        frame.put(&mut record);
        record
    };
    frames.iter().map(put).collect()
}
