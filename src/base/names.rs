//! Enums whose variants have one name each, the same on the wire, in the state and in logs.

/// Declares such an enum. Its names stand beside its variants and nowhere else, so that no list of them can be left
/// behind: `ALL`, `WORDS`, `as_str`, `from_wire`, `Display` and serde all follow from the one table.
macro_rules! names {
    (
        $(#[$attribute:meta])*
        pub enum $Name:ident {
            $($(#[$about:meta])* $Variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
        pub enum $Name {
            $($(#[$about])* #[serde(rename = $name)] $Variant,)+
        }

        impl $Name {
            /// In the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$Variant),+];

            /// Each with its name, as the config's reader takes them.
            pub const WORDS: &[(&str, Self)] = &[$(($name, Self::$Variant)),+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }

            /// The variant of this name, compared exactly.
            pub fn from_wire(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$Variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $Name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use names;
