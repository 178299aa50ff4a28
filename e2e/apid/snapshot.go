package apid

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// NewSnapshot makes a snapshot of etcd of about size bytes: a real database, since talosctl looks into it, and its digest behind it.
func NewSnapshot(dir string, size int) ([]byte, error) {
	path := filepath.Join(dir, "etcd.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	defer os.Remove(path)
	const valueSize = 64 << 10
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
		for i := range size / (valueSize + 4096) {
			// A key of etcd is a revision: main, "_", sub.
			key := append(binary.BigEndian.AppendUint64(nil, uint64(i+1)), '_')
			value := make([]byte, valueSize)
			_, _ = random.Read(value)
			if err := keys.Put(binary.BigEndian.AppendUint64(key, 0), value); err != nil {
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
