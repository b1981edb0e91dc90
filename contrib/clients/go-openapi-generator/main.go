// Uses the client that openapi-generator makes for Go: every value that the service answers is checked.
package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"slices"
	"time"

	"lvp.example/client/lvp"
)

const sizeGB int64 = 3
const size = sizeGB << 30

var (
	ctx  = context.Background()
	api  *lvp.APIClient
	done = []lvp.JobStatus{lvp.COMPLETED, lvp.FAILED, lvp.CANCELLED}
)

// answered returns the body of a success response.
func answered[T any](value T, _ *http.Response, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return value
}

func must[T any](value T, err error) T {
	return answered(value, nil, err)
}

func equal[T comparable](what string, found, wanted T) {
	if found != wanted {
		log.Panicf("%s is %v, not %v", what, found, wanted)
	}
}

// connect makes a client with a token, or else with a certificate.
func connect() *lvp.APIClient {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(os.Getenv("LVP_CA"))))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	if token := os.Getenv("LVP_TOKEN"); token != "" {
		keys := map[string]lvp.APIKey{"apiToken": {Key: token}}
		ctx = context.WithValue(ctx, lvp.ContextAPIKeys, keys)
	} else {
		pair := must(tls.LoadX509KeyPair(os.Getenv("LVP_CERTIFICATE"), os.Getenv("LVP_KEY")))
		transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	}
	config := lvp.NewConfiguration()
	config.Servers = lvp.ServerConfigurations{{URL: os.Getenv("LVP_URL")}}
	config.HTTPClient = &http.Client{Transport: transport}
	return lvp.NewAPIClient(config)
}

func wait(id string, wanted ...lvp.JobStatus) *lvp.Job {
	for range 6000 {
		job := answered(api.JobsAPI.GetJob(ctx, id).Execute())
		if slices.Contains(wanted, job.Status) {
			return job
		}
		time.Sleep(10 * time.Millisecond)
	}
	log.Panicf("job %s did not get to %v", id, wanted)
	return nil
}

func submit(request *lvp.JobRequest) string {
	return answered(api.JobsAPI.SubmitJob(ctx).JobRequest(*request).Execute()).JobId
}

// provision submits a job for a volume of 3 GiB, and finds it in every list.
func provision(volume string) string {
	checksum := os.Getenv("LVP_CHECKSUM")
	request := lvp.NewJobRequest(volume)
	request.SetImageUrl(os.Getenv("LVP_IMAGE_URL"))
	request.SetVolumeSizeGb(sizeGB)
	plan := answered(api.JobsAPI.PlanJob(ctx).JobRequest(*request).Execute())
	equal("volume_size_bytes", plan.GetVolumeSizeBytes(), size)
	equal("refusals", len(plan.Refusals), 0)

	job := wait(submit(request), done...)
	equal("status", job.Status, lvp.COMPLETED)
	equal("volume.size_bytes", job.Volume.SizeBytes, size)
	equal("volume.provisioned_by", job.Volume.ProvisionedBy, lvp.COPY)
	equal("bytes_total", job.Progress.GetBytesTotal(), size)
	equal("bytes_processed", job.Progress.GetBytesProcessed(), size)
	equal("percent", job.Progress.Percent, 100)
	equal("request.volume_size_gb", job.Request.GetVolumeSizeGb(), sizeGB)
	equal("submitted_by", job.GetSubmittedBy(), os.Getenv("LVP_PRINCIPAL"))
	equal("has waiting_for", job.HasWaitingFor(), false)
	equal("created_at is later than updated_at", job.CreatedAt.After(job.UpdatedAt), false)

	page := answered(api.JobsAPI.ListJobs(ctx).Status(lvp.COMPLETED).VolumeName(volume).Limit(5).Execute())
	equal("count", page.Count, 1)
	equal("limit", page.Limit, 5)
	equal("jobs[0].job_id", page.Jobs[0].JobId, job.JobId)
	volumes := answered(api.VolumesAPI.ListVolumes(ctx).Execute()).Volumes
	place := slices.IndexFunc(volumes, func(one lvp.Volume) bool { return one.Name == volume })
	equal("size_bytes", volumes[place].SizeBytes, size)
	equal("checksum", volumes[place].GetChecksum(), checksum)
	equal("job_id", volumes[place].JobId, job.JobId)
	images := answered(api.CacheAPI.ListCachedImages(ctx).ChecksumPrefix(checksum[:12]).Execute())
	equal("count", images.Count, 1)
	equal("virtual_size", images.Images[0].GetVirtualSize(), size)
	equal("digest", images.Images[0].Digest, "sha256:"+checksum)
	return job.JobId
}

func cancel(volume string) {
	request := lvp.NewJobRequest(volume)
	request.SetImageUrl(os.Getenv("LVP_HELD_URL"))
	request.SetImageType("raw")
	request.SetPriority(-7)
	id := submit(request)
	job := wait(id, lvp.RUNNING)
	equal("priority", job.Request.GetPriority(), -7)
	equal("job_id", answered(api.JobsAPI.CancelJob(ctx, id).Execute()).JobId, id)
	equal("status", wait(id, done...).Status, lvp.CANCELLED)
}

// refused reads the error of a call that is refused with this status.
func refused(status int32, response *http.Response, err error) lvp.ErrorResponse {
	var failure *lvp.GenericOpenAPIError
	equal("is an API error", errors.As(err, &failure), true)
	found, typed := failure.Model().(lvp.ErrorResponse)
	equal("is an ErrorResponse", typed, true)
	equal("code", found.Code, status)
	equal("message is empty", found.Message == "", false)
	equal("X-Request-ID is empty", response.Header.Get("X-Request-ID") == "", false)
	return found
}

func fail(ended string) {
	random := make([]byte, 6)
	must(rand.Read(random))
	_, response, err := api.JobsAPI.GetJob(ctx, fmt.Sprintf("00000000-0000-4000-8000-%x", random)).Execute()
	equal("error", refused(404, response, err).Error, "job not found")
	_, response, err = api.JobsAPI.CancelJob(ctx, ended).Execute()
	refused(400, response, err)
	foreign := lvp.NewJobRequest("x")
	foreign.SetImageUrl("https://elsewhere.example/disk.qcow2")
	_, response, err = api.JobsAPI.SubmitJob(ctx).JobRequest(*foreign).Execute()
	refused(400, response, err)
}

func main() {
	api = connect()
	volume := os.Getenv("LVP_VOLUME")
	caller := answered(api.HostAPI.Whoami(ctx).Execute())
	equal("principal", caller.Principal, os.Getenv("LVP_PRINCIPAL"))
	equal("role", caller.Role, "operator")
	target := answered(api.HostAPI.ListTargets(ctx).Execute()).Targets[0]
	equal("target is large", target.GetSizeBytes() > size, true)
	id := provision(volume)
	cancel(volume + "-cancelled")
	fail(id)
}
