package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// A real service is given by the environment; tests/end_to_end/test_terraform.py starts it.
var (
	imageURL = os.Getenv("TEST_IMAGE_URL")
	heldURL  = os.Getenv("TEST_HELD_URL") // the download never ends
	checksum = os.Getenv("TEST_CHECKSUM")
)

type values map[string]any

func config(name string, more values) values {
	found := values{"name": name, "image_url": imageURL, "size_gb": 3}
	for key, value := range more {
		found[key] = value
	}
	return found
}

func TestLifecycle(t *testing.T) {
	core := start(t, nil)
	made := core.apply(t, core.none(), config("tf-life", nil))
	made.want(t, "target", "files")
	made.want(t, "digest", "sha256:"+checksum)
	made.want(t, "size_bytes", int64(3)<<30)
	path := made.text(t, "path")
	if info, err := os.Stat(path); err != nil || info.Size() != 3<<30 {
		t.Fatalf("%s: %v, %v", path, info, err)
	}

	planned := core.plan(t, made, config("tf-life", nil))
	planned.wantNoErrors(t)
	if !planned.state.Equal(made.value) || len(planned.replace) > 0 {
		t.Fatalf("a second run plans a change: %v", planned.state)
	}

	read := core.read(t, made)
	if !read.value.Equal(made.value) {
		t.Fatalf("reading changes the state: %v", read.value)
	}

	grown := core.apply(t, made, config("tf-life", values{"size_gb": 4}))
	grown.want(t, "size_bytes", int64(4)<<30)
	grown.want(t, "path", path)
	core.plan(t, grown, config("tf-life", values{"size_gb": 3})).wantError(t, "never shrinks")

	other := core.plan(t, grown, config("tf-life", values{"image_url": heldURL}))
	if len(other.replace) != 1 {
		t.Fatalf("another image replaces %v", other.replace)
	}

	core.destroy(t, grown)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Fatalf("%s is still there: %v", path, err)
	}
	if gone := core.read(t, grown); !gone.value.IsNull() {
		t.Fatalf("a removed volume is read as %v", gone.value)
	}
	core.destroy(t, grown) // one that another has removed
}

func TestExistingVolume(t *testing.T) {
	core := start(t, nil)
	made := core.apply(t, core.none(), config("tf-there", nil))
	core.refuse(t, config("tf-there", nil), `import it as "files/tf-there"`)

	imported := core.importState(t, "files/tf-there")
	imported.want(t, "size_gb", 3)
	imported.want(t, "path", made.text(t, "path"))
	planned := core.plan(t, imported, config("tf-there", nil))
	planned.wantNoErrors(t)
	if len(planned.replace) > 0 {
		t.Fatalf("an imported volume would be replaced because of %v", planned.replace)
	}
	noted := core.apply(t, imported, config("tf-there", nil))
	noted.want(t, "image_url", imageURL)
	core.importRefused(t, "tf-there", "TARGET/NAME")
	core.destroy(t, noted)
}

func TestCloudInit(t *testing.T) {
	core := start(t, nil)
	seed := values{"user_data": "#cloud-config\nhostname: grüße\n"}
	made := core.apply(t, core.none(), config("tf-seed", values{"cloud_init": seed}))
	file := strings.TrimSuffix(made.text(t, "path"), ".raw") + "-seed.raw"
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), "hostname: grüße") {
		t.Fatalf("%s: %v", file, err)
	}
	core.destroy(t, made)
}

func TestRefusals(t *testing.T) {
	core := start(t, nil)
	core.invalid(t, values{"name": "tf-none"}, "Give image, the name of one, or image_url")
	core.invalid(t, config("tf-both", values{"image": "debian-12"}), "Give image, the name of one, or image_url")
	core.refuse(t, config("wéb ☃", nil), "volume")
	core.refuse(t, config("../etc", nil), "volume")
	core.refuse(t, config("tf-target", values{"target": "nowhere"}), "nowhere")
	core.refuse(t, config("tf-source", values{"image_url": "https://elsewhere.example/a.qcow2"}), "no configured source")
	core.refuse(t, config("tf-small", values{"size_gb": 1}), "GiB or more")
	core.refuse(t, config("tf-sum", values{"checksum": "sha256:" + strings.Repeat("0", 64)}), "failed: ")
	core.refuse(t, config("tf-name", values{"image": "no-such-image", "image_url": nil}), "no-such-image")
}

func TestCredentials(t *testing.T) {
	core := start(t, values{"token": "lvp_wrong"})
	core.refuse(t, config("tf-token", nil), "the API token is unknown")
	core = start(t, values{"url": "https://127.0.0.1:1"})
	core.refuse(t, config("tf-url", nil), "connection refused")
	configureRefused(t, values{"url": "ftp://host"}, "must look like")
	configureRefused(t, values{"token_file": "/nonexistent"}, "not both")
	configureRefused(t, values{"key": "/nonexistent"}, "key needs cert")
	configureRefused(t, values{"ca": "/nonexistent"}, "the CA cannot be read")
}

func TestTimeoutCancelsTheJob(t *testing.T) {
	core := start(t, nil)
	core.refuse(t, config("tf-slow", values{"image_url": heldURL, "image_type": "raw", "timeout": 2}), "cancelled and rolled back")
	wantNoJob(t, "tf-slow")
}

func TestInterruptCancelsTheJob(t *testing.T) {
	core := start(t, nil)
	var stop context.CancelFunc
	core.ctx, stop = context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if len(jobsOf(t, "tf-stop", "running")) > 0 {
				break
			}
		}
		stop()
	}()
	core.refuse(t, config("tf-stop", values{"image_url": heldURL, "image_type": "raw"}), "cancelled and rolled back")
	<-ended
	wantNoJob(t, "tf-stop")
}

func wantNoJob(t *testing.T, name string) {
	t.Helper()
	for _, status := range []string{"pending", "running"} {
		if found := jobsOf(t, name, status); len(found) > 0 {
			t.Fatalf("a job is still %s", status)
		}
	}
	if found := jobsOf(t, name, "cancelled"); len(found) != 1 {
		t.Fatalf("%d jobs were cancelled", len(found))
	}
}

func jobsOf(t *testing.T, name, status string) []job {
	t.Helper()
	made, err := newClient(connection{url: os.Getenv("LVP_URL"), token: os.Getenv("LVP_TOKEN"), ca: os.Getenv("LVP_CA")})
	if err != nil {
		t.Error(err)
		return nil
	}
	var found struct{ Jobs []job }
	err = made.call(context.Background(), time.Minute, "GET", "jobs?volume_name="+name+"&status="+status, nil, &found)
	if err != nil {
		t.Error(err)
	}
	return found.Jobs
}
