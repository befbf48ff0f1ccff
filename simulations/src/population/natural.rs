//! Natural populations: whoever shares a value is one tenant.

use std::collections::BTreeMap;

use super::{PartitionError, check_size};

/// Makes one tenant of each distinct value.
///
/// - `values`: one an example, such as a speaker, a writer or a country
/// - returns: the values in ascending order, each with the indices of its examples
///
/// # Errors
/// [`PartitionError`] for too many examples or none.
pub fn by_value(values: &[String]) -> Result<Vec<(String, Vec<u32>)>, PartitionError> {
    check_size(1, values.len())?;
    let mut groups: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (value, index) in values.iter().zip(0..) {
        groups.entry(value).or_default().push(index);
    }
    Ok(groups.into_iter().map(|(value, share)| (value.to_owned(), share)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_shares_a_value_is_one_tenant() {
        let values = ["b", "a", "b"].map(str::to_owned);
        let groups = by_value(&values).unwrap();
        assert_eq!(groups, [("a".to_owned(), vec![1]), ("b".to_owned(), vec![0, 2])]);
        assert!(by_value(&[]).is_err());
    }
}
