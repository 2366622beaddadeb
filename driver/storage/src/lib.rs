//! Images and block devices: alignment, sparse operations, metadata files.
