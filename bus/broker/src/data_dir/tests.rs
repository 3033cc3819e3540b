//! What a data folder is to its node.

use super::*;

#[test]
fn a_folder_is_one_nodes_and_one_processs() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("data");
    let mut ids = 0;
    let mut draw = || {
        ids += 1;
        Uuid::from_u128(ids)
    };
    let first = DataDir::open(&root, 1, &mut draw).unwrap();
    assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::InUse { .. })));
    let cluster = first.node.cluster_id.clone();
    assert!(first.was_clean());
    first.mark_clean().unwrap();
    drop(first);
    assert!(matches!(
        DataDir::open(&root, 2, &mut draw),
        Err(DataDirError::OtherNode { theirs: 1, ours: 2, .. })
    ));
    let second = DataDir::open(&root, 1, &mut draw).unwrap();
    assert!(second.was_clean());
    assert_eq!(second.node.cluster_id, cluster);
    drop(second);
    assert!(!DataDir::open(&root, 1, &mut draw).unwrap().was_clean(), "it was not closed cleanly");
    // A start that fails marks it clean again only if it was.
    assert!(!root.join("clean").exists());
    let clean = DataDir::open(&root, 1, &mut draw).unwrap();
    clean.mark_clean().unwrap();
    drop(clean);
    DataDir::open(&root, 1, &mut draw).unwrap().traces().remove();
    assert!(DataDir::open(&root, 1, &mut draw).unwrap().was_clean());
    fs::write(root.join("node.json"), "{").unwrap();
    assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::Damaged { .. })));
    // Without it nobody knows whose topics these are.
    fs::remove_file(root.join("node.json")).unwrap();
    fs::create_dir_all(root.join("topics/orders@7/0")).unwrap();
    assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::Damaged { .. })));
    assert!(root.join("topics/orders@7/0").exists());
    fs::remove_dir(root.join("topics/orders@7/0")).unwrap();
    DataDir::open(&root, 1, &mut draw).unwrap();
}

#[test]
fn what_the_topics_lie_in_is_another_directory_once_they_are_gone() {
    let temp = tempfile::tempdir().unwrap();
    let (root, other) = (temp.path().join("data"), temp.path().join("other"));
    let open = |root: &Path, node| DataDir::open(root, node, Uuid::new_v4);
    let enter = |root: &Path, node| {
        let data = open(root, node).unwrap();
        data.note_cluster("joined").unwrap();
        data.directory()
    };
    let first = enter(&root, 1);
    let (topics, away) = (root.join("topics"), temp.path().join("away"));
    fs::create_dir_all(topics.join("orders@7/0")).unwrap();
    assert_eq!(enter(&root, 1), first);
    // Where they lie does not matter.
    fs::rename(&topics, &away).unwrap();
    std::os::unix::fs::symlink(&away, &topics).unwrap();
    assert_eq!(enter(&root, 1), first);
    // What they lie in is not there. A start that does not come to be of the cluster changes nothing.
    fs::remove_file(&topics).unwrap();
    assert_ne!(open(&root, 1).unwrap().directory(), first);
    assert!(!topics.exists(), "it must not be in the way of what comes back");
    fs::rename(&away, &topics).unwrap();
    assert_eq!(enter(&root, 1), first);
    // Emptied, with whatever it is that goes with `*`.
    fs::remove_dir_all(&topics).unwrap();
    fs::create_dir(&topics).unwrap();
    assert!(open(&root, 1).unwrap().topics_are_gone());
    fs::write(topics.join("lost"), "").unwrap();
    assert!(!open(&root, 1).unwrap().topics_are_gone());
    let second = enter(&root, 1);
    assert_ne!(second, first);
    assert!(!topics.join("lost").exists(), "it is said once");
    assert_eq!(enter(&root, 1), second);

    // Those of another node, and those of which nothing is known, are left alone.
    enter(&other, 2);
    fs::create_dir_all(other.join("topics/orders@7/0")).unwrap();
    fs::remove_dir_all(&topics).unwrap();
    fs::rename(other.join("topics"), &topics).unwrap();
    let refused = open(&root, 1).unwrap_err();
    assert!(matches!(&refused, DataDirError::OtherTopics { theirs: (2, _), ours: (1, _), .. }), "{refused}");
    fs::remove_file(topics.join("node.json")).unwrap();
    let refused = open(&root, 1).unwrap_err();
    assert!(matches!(&refused, DataDirError::Damaged { path, .. } if path.ends_with("topics/node.json")));
    assert!(topics.join("orders@7/0").exists());
}

#[test]
fn a_first_start_that_is_killed_is_a_first_start_again() {
    let temp = tempfile::tempdir().unwrap();
    let open = || DataDir::open(temp.path(), 1, Uuid::new_v4).unwrap();
    let first = open().directory();
    // As it is when the last of its files was not written.
    fs::remove_file(temp.path().join("node.json")).unwrap();
    let again = open();
    assert_eq!((again.directory(), again.topics_are_gone()), (first, false));
}

#[test]
fn topics_stay_with_the_cluster_that_they_are_of() {
    let temp = tempfile::tempdir().unwrap();
    let open = || DataDir::open(temp.path(), 1, || Uuid::from_u128(7)).unwrap();
    let new = Uuid::from_u128(7).to_string();
    let data = open();
    assert_eq!(data.keeps().unwrap(), Keeps::Nothing { cluster_id_if_new: &new });
    // A file system of its own.
    fs::create_dir_all(data.topics().join("lost+found/7")).unwrap();
    // Nor is anything kept in these.
    fs::write(data.topics().join(".of-an-editor"), "").unwrap();
    fs::create_dir(data.topics().join("orders@6")).unwrap();
    assert_eq!(data.keeps().unwrap(), Keeps::Nothing { cluster_id_if_new: &new });
    data.note_cluster("joined").unwrap();
    drop(data);
    let data = open();
    fs::create_dir_all(data.topics().join("orders@7/0")).unwrap();
    assert_eq!(data.keeps().unwrap(), Keeps::TopicsOf("joined"));
    data.note_cluster("joined").unwrap();
    assert!(matches!(
        data.note_cluster("another"),
        Err(DataDirError::OtherCluster { ours, theirs, .. }) if ours == "joined" && theirs == "another"
    ));
    drop(data);
    assert_eq!(open().keeps().unwrap(), Keeps::TopicsOf("joined"));
}

#[test]
fn a_start_that_fails_leaves_what_was_there_and_nothing_more() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("a/b");
    let start = |given: Option<&str>| {
        if let Some(given) = given {
            fs::create_dir_all(folder.join("tls")).unwrap();
            fs::write(folder.join("tls").join(given), "given").unwrap();
        }
        let data = DataDir::open(&folder, 1, Uuid::new_v4).unwrap();
        fs::write(data.tls().join("node.pem"), "made").unwrap();
        fs::write(data.metadata().join("log"), "made").unwrap();
        data.traces().remove();
    };
    start(None);
    assert!(!temp.path().join("a").exists());
    start(Some("ca.pem"));
    let left = |folder: &Path| {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
    };
    assert_eq!((left(&folder), left(&folder.join("tls"))), (vec!["tls".into()], vec!["ca.pem".into()]));
}
