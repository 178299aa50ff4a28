package kube

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muxproxy/e2e/testbed"
)

const (
	watches = 300
	// a minute, in which each watch gets two hundred events.
	watchFor   = time.Minute
	eventEvery = 300 * time.Millisecond
)

func TestManyWatchesSeeEachEventInOrderAndLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	namespace := newNamespace(t)
	create(t, namespace, "watched", "0")
	d.answers(t, "cert", answerLimit)
	before := d.Usage(t)

	all := make([]*watcher, watches)
	for i := range all {
		all[i] = d.watch(t, []string{"cert", "exec-token"}[i%2], namespace)
	}
	var reading sync.WaitGroup
	for i, w := range all {
		reading.Go(func() {
			for n := range int(watchFor / eventEvery) {
				if got := w.next(t, 2*answerLimit); got != strconv.Itoa(n) {
					t.Errorf("watch %d has event %q in place of %d: %v", i, got, n, w.end)
					return
				}
			}
		})
	}
	writeEvents(t, namespace)
	reading.Wait()
	full := d.Usage(t)
	for _, w := range all {
		w.cancel()
	}
	t.Logf("%d watches: %.1f MB at rest, %.1f MB with them (%.0f KB each), %d and %d descriptors",
		watches, float64(before.RSS)/1e6, float64(full.RSS)/1e6, float64(full.RSS-before.RSS)/1e3/watches, before.Descriptors, full.Descriptors)
	testbed.Eventually(t, "the end of the watches", answerLimit, func() error {
		if now := d.Usage(t); now.Descriptors > before.Descriptors+10 {
			return fmt.Errorf("%d descriptors, %d before", now.Descriptors, before.Descriptors)
		}
		return nil
	})
	if after := d.Usage(t); after.RSS > full.RSS+full.RSS/4 {
		t.Errorf("RSS grows after the watches: %d, %d with them", after.RSS, full.RSS)
	}
	// Upon SIGQUIT the runtime prints all goroutines.
	d.Signal(t, syscall.SIGQUIT)
	<-d.Ended()
	said := d.Stderr()
	if n := strings.Count(said, "\ngoroutine "); n == 0 || n > 60 {
		t.Errorf("%d goroutines are left", n)
	}
}

// writeEvents changes the watched object at an even pace.
func writeEvents(t *testing.T, namespace string) {
	t.Helper()
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	for n := 1; n < int(watchFor/eventEvery); n++ {
		<-tick.C
		body := fmt.Sprintf(`{"data":{"n":"%d"}}`, n)
		if err := shared.Do(t.Context(), "PATCH", "/api/v1/namespaces/"+namespace+"/configmaps/watched", "application/merge-patch+json", body); err != nil {
			t.Error(err)
		}
	}
}
