//! Flag words. A word from the wire keeps bits that we do not know, so that they can be refused.

use std::ops::BitOr;

macro_rules! flags {
    ($(#[$doc:meta])* $t:ident { $($(#[$bit_doc:meta])* $bit:ident = $n:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $t(pub u16);

        impl $t {
            $($(#[$bit_doc])* pub const $bit: $t = $t(1 << $n);)*

            /// No flag.
            pub const NONE: $t = $t(0);

            /// Whether every flag of `other` is set.
            #[must_use]
            pub const fn has(self, other: $t) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no flag outside `allowed` is set.
            #[must_use]
            pub const fn only(self, allowed: $t) -> bool {
                self.0 & !allowed.0 == 0
            }

            /// These flags and `other`.
            #[must_use]
            pub const fn with(self, other: $t) -> $t {
                $t(self.0 | other.0)
            }

            /// These flags without `other`.
            #[must_use]
            pub const fn without(self, other: $t) -> $t {
                $t(self.0 & !other.0)
            }
        }

        impl BitOr for $t {
            type Output = $t;
            fn bitor(self, other: $t) -> $t {
                self.with(other)
            }
        }
    };
}

flags! {
    /// Flags of one request.
    CommandFlags {
        /// Answer when the data is durable.
        FUA = 0;
        /// WRITE_ZEROES: allocate, do not punch a hole.
        NO_HOLE = 1;
        /// READ: answer in one chunk.
        DF = 2;
        /// BLOCK_STATUS: one extent, not past the end of the request.
        REQ_ONE = 3;
        /// WRITE_ZEROES: fail with ENOTSUP if it would not be faster than writing.
        FAST_ZERO = 4;
        /// Extended headers only: the length counts a payload.
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// What the server says of an export.
    TransmissionFlags {
        /// Always set.
        HAS_FLAGS = 0;
        /// Writes are refused.
        READ_ONLY = 1;
        /// FLUSH works.
        SEND_FLUSH = 2;
        /// FUA works.
        SEND_FUA = 3;
        /// The disk rotates.
        ROTATIONAL = 4;
        /// TRIM works.
        SEND_TRIM = 5;
        /// WRITE_ZEROES works.
        SEND_WRITE_ZEROES = 6;
        /// DF works. Only together with structured replies.
        SEND_DF = 7;
        /// A flush on one connection covers writes answered on every other.
        CAN_MULTI_CONN = 8;
        /// RESIZE works.
        SEND_RESIZE = 9;
        /// CACHE works.
        SEND_CACHE = 10;
        /// FAST_ZERO works.
        SEND_FAST_ZERO = 11;
    }
}
