//! Debian's packages without installing them: [`apt`] fetches and unpacks them, [`sysroot`] starts programs of another release,
//! [`image`] unpacks a kernel image, [`modules`] finds kernel modules and their dependencies.

pub(crate) mod apt;
pub(crate) mod image;
pub(crate) mod modules;
pub(crate) mod sysroot;
