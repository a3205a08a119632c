pub mod credentials;
pub mod identity;
