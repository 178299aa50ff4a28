package apid

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/protowire"
)

// NewSnapshot makes a snapshot of etcd of about size bytes: a real database, since talosctl looks into it, and its digest behind it.
func NewSnapshot(dir string, size int) ([]byte, error) {
	path := filepath.Join(dir, "etcd.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	// Two values with their keys fill 32 pages.
	const valueSize = 64<<10 - 512
	random := rand.NewChaCha8([32]byte{})
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"meta", "cluster", "members"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		keys, err := tx.CreateBucket([]byte("key"))
		if err != nil {
			return err
		}
		for i := range size / (64 << 10) {
			// A key of etcd is a revision: main, "_", sub.
			key := append(binary.BigEndian.AppendUint64(nil, uint64(i+1)), '_')
			value := make([]byte, valueSize)
			_, _ = random.Read(value)
			if err := keys.Put(binary.BigEndian.AppendUint64(key, 0), keyValue(i+1, value)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(path)
	digest := sha256.Sum256(text)
	return append(text, digest[:]...), err
}

// keyValue is a message of type mvccpb.KeyValue.
func keyValue(revision int, value []byte) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendString(b, fmt.Sprintf("/registry/secrets/%d", revision))
	for field := range 3 { // create_revision, mod_revision, version
		b = protowire.AppendTag(b, protowire.Number(field+2), protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(revision))
	}
	b = protowire.AppendTag(b, 5, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}
