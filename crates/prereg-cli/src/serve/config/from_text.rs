//! Deserialization of values that the command line and the configuration file write as the same text.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::Error as _;

pub(super) fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err = String>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}
