use super::*;

fn check(store: &mut dyn Store) {
    let mut batch = Batch::default();
    batch.put(Table::Jobs, "b", &2);
    batch.put(Table::Jobs, "a", &1);
    batch.put(Table::Tenants, "a", &"tenant");
    store.apply(&batch).expect("applies");
    let mut batch = Batch::default();
    batch.put(Table::Jobs, "b", &3);
    store.apply(&batch).expect("applies");
    assert_eq!(load::<u32>(store, Table::Jobs).expect("reads"), [1, 3]);
    assert_eq!(load::<String>(store, Table::Tenants).expect("reads"), ["tenant"]);
    assert!(load::<u32>(store, Table::Models).expect("reads").is_empty());
    let error = load::<u32>(store, Table::Tenants).expect_err("not a number").to_string();
    assert!(error.contains("\"a\"") && error.contains("tenants"), "{error}");
}

#[test]
fn memory_keeps_records_by_table_and_key() {
    check(&mut MemoryStore::default());
}

#[test]
fn sled_keeps_records_across_reopening_and_refuses_a_second_opener() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("store");
    let mut store = SledStore::open(&path).expect("opens");
    check(&mut store);
    let error = SledStore::open(&path).expect_err("in use");
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    drop(store);
    let store = SledStore::open(&path).expect("reopens");
    assert_eq!(load::<u32>(&store, Table::Jobs).expect("reads"), [1, 3]);
}
