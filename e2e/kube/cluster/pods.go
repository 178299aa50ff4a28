package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"syscall"
	"time"
)

// watchPods looks after the pods of the node until ctx ends: it says that they run, and lets those that are deleted go.
// It returns when the first watch has begun.
func (c *Cluster) watchPods(ctx context.Context) error {
	res, err := c.openWatch(ctx)
	if err != nil {
		return err
	}
	c.ending.Go(func() {
		for ctx.Err() == nil {
			if err == nil {
				c.keepPods(ctx, res)
			} else {
				pause(ctx, 200*time.Millisecond)
			}
			// The API server was stopped, or ended the watch: all pods are told again.
			res, err = c.openWatch(ctx)
		}
		if err == nil {
			res.Body.Close()
		}
	})
	return nil
}

func (c *Cluster) openWatch(ctx context.Context) (*http.Response, error) {
	res, err := c.Send(ctx, "GET", "/api/v1/pods?watch=true&fieldSelector=spec.nodeName="+NodeName, "", "")
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("watch pods: %s", res.Status)
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// pod is what is read of a Pod.
type pod struct {
	Metadata struct {
		Namespace, Name   string
		DeletionTimestamp string
	}
	Spec struct {
		Containers []struct{ Name, Image string }
	}
	Status struct{ Phase string }
}

// keepPods reads one watch to its end.
func (c *Cluster) keepPods(ctx context.Context, res *http.Response) {
	defer res.Body.Close()
	in := json.NewDecoder(res.Body)
	for {
		var event struct {
			Type   string
			Object pod
		}
		if in.Decode(&event) != nil {
			return
		}
		p := event.Object
		path := "/api/v1/namespaces/" + p.Metadata.Namespace + "/pods/" + p.Metadata.Name
		switch {
		case event.Type == "DELETED":
		case p.Metadata.DeletionTimestamp != "":
			// A pod that is gone meanwhile is no error.
			_ = c.Do(ctx, "DELETE", path, "application/json", `{"gracePeriodSeconds":0}`)
		case p.Status.Phase == "Pending":
			_ = c.Do(ctx, "PATCH", path+"/status", "application/merge-patch+json", p.running())
		}
	}
}

// running is the status of a pod whose containers all run.
func (p *pod) running() string {
	type container map[string]any
	var containers []container
	for _, c := range p.Spec.Containers {
		containers = append(containers, container{
			"name": c.Name, "image": c.Image, "imageID": "", "ready": true, "started": true, "restartCount": 0, "containerID": "e2e://" + c.Name,
			"state": container{"running": container{"startedAt": "2026-01-02T03:04:05Z"}},
		})
	}
	text, _ := json.Marshal(map[string]any{"status": map[string]any{
		"phase": "Running", "podIP": "10.0.0.1", "podIPs": []any{map[string]any{"ip": "10.0.0.1"}}, "hostIP": "127.0.0.1", "startTime": "2026-01-02T03:04:05Z",
		"containerStatuses": containers,
		"conditions":        []any{map[string]any{"type": "Ready", "status": "True"}, map[string]any{"type": "ContainersReady", "status": "True"}},
	}})
	return string(text)
}

// pause waits, less where ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// newSession makes a process the leader of a session, with its stdin as terminal.
func newSession() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Setctty: true}
}
