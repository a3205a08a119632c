pub mod preauth;
