//! Reading little-endian fields from bytes that nobody vouches for.
//!
//! Faults are returned as plain sentences: the caller knows the file's name.

/// A position in a byte slice; no read ever goes past the end or allocates.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position: position.min(bytes.len()) }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(count).ok().and_then(|n| self.position.checked_add(n));
        match end.and_then(|end| self.bytes.get(self.position..end)) {
            Some(taken) => {
                self.position += taken.len();
                Ok(taken)
            }
            None => Err(format!(
                "{count} bytes are needed at byte {}, {} are left",
                self.position,
                self.remaining()
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take `least` bytes each, which must fit into what is left.
    pub(super) fn count(&mut self, what: &str, least: usize) -> Result<usize, String> {
        let at = self.position;
        let count = self.u64()?;
        let fits = usize::try_from(count).ok().filter(|&n| n <= self.remaining() / least.max(1));
        fits.ok_or_else(|| {
            format!("{count} {what} are announced at byte {at}, {} bytes are left", self.remaining())
        })
    }

    /// A string, length first.
    pub(super) fn string(&mut self) -> Result<&'a [u8], String> {
        let length = self.u64()?;
        self.take(length)
    }
}
