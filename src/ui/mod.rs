//! The chat page.

/// One embedded file.
pub struct Asset {
    pub content_type: &'static str,
    pub bytes: &'static [u8],
}

pub fn asset(_path: &str) -> Option<Asset> {
    None
}

pub fn headers() -> Vec<(&'static str, &'static str)> {
    Vec::new()
}
